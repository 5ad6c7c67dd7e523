"""One thread writes many answers: none lost, none mixed up, none holds the others."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from attar.runtimes.runtime import Sampling, Token
from attar.serve.batching import PIECE, Batched, End, Job, QueueFull, Stopped, Writer
from attar.serve.delegating import Delegated
from attar.serve.gathering import Bounds, Gatherer
from serve.fakes import Echo, EchoDecoder, lengths, tokenizer


class Held(Echo):
    """Writes nothing until it may."""

    def __init__(self, go: threading.Event) -> None:
        super().__init__()
        self.go = go

    def extend(self, given: Any) -> Any:
        assert self.go.wait(60)
        return super().extend(given)


class Listener:
    """Hears what is told of a job."""

    def __init__(self, text: str, limit: int = 400) -> None:
        self.text, self.tokens, self.end = text, [], None
        self.done = threading.Event()
        ids = tokenizer()(text)["input_ids"]
        self.job = Job(ids, limit, Sampling(), frozenset({256}), self.tell)

    def tell(self, news: Token | End) -> None:
        if isinstance(news, End):
            self.end = news
            self.done.set()
        else:
            self.tokens.append(news.id)

    def answer(self) -> str:
        assert self.done.wait(60)
        return tokenizer().decode(self.tokens, skip_special_tokens=True)


def writers() -> list[Any]:
    return [
        lambda queue=100: Batched(Echo(), 4, queue),
        lambda queue=100: Delegated(EchoDecoder(), 2, queue),
    ]


@pytest.mark.parametrize("make", writers())
def test_every_answer_is_of_its_own_prompt(make: Any):
    writer: Writer = make()
    listeners = [Listener(f"marker {number * 7919}" * (1 + number % 3)) for number in range(40)]
    for listener in listeners:
        writer.submit(listener.job)
    for listener in listeners:
        assert listener.answer() == listener.text
        assert listener.end == End("stop")
    writer.close()
    assert (writer.waiting, writer.running) == (0, 0)


@pytest.mark.parametrize("make", writers())
def test_the_limit_ends_an_answer(make: Any):
    writer: Writer = make()
    listener = Listener("twelve words", limit=6)
    writer.submit(listener.job)
    assert listener.answer() == "twelve"
    assert listener.end == End("length")
    writer.close()


def test_a_batch_is_never_larger_than_it_may_be_and_as_large_as_it_can():
    go = threading.Event()
    echo = Held(go)
    writer = Batched(echo, 4, 100)
    listeners = [Listener("a prompt of some length") for _ in range(12)]
    for listener in listeners:
        writer.submit(listener.job)
    go.set()
    assert all(listener.answer() == listener.text for listener in listeners)
    writer.close()
    assert echo.most == 4


@pytest.mark.parametrize("length", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 1, 3 * PIECE + 5])
def test_long_prompts_are_read_in_pieces(length: int):
    given: list[int] = []

    class Watching(Echo):
        def extend(self, rows: Any) -> Any:
            given.extend(len(ids) for ids in rows.values())
            return {row: np.eye(1, 257, 256, dtype=np.float32)[0] for row in rows}

    writer = Batched(Watching(), 4, 10)
    listeners = [Listener("x" * length) for _ in range(2)]
    for listener in listeners:
        writer.submit(listener.job)
    assert all(listener.answer() == "" for listener in listeners)
    writer.close()
    assert sum(given) == 2 * length
    assert max(given) <= PIECE


def test_too_many_are_refused_and_the_others_answered():
    go = threading.Event()
    writer = Batched(Held(go), 1, 3)
    listeners = [Listener("some words") for _ in range(20)]
    refused = 0
    for listener in listeners:
        try:
            writer.submit(listener.job)
        except QueueFull:
            refused += 1
            listener.done.set()
            listener.text = ""
    go.set()
    assert 20 - 3 - 1 <= refused <= 20 - 3  # one left the queue, if it was quick
    assert all(listener.answer() == listener.text for listener in listeners)
    writer.close()


def test_a_job_that_nobody_waits_for_leaves_at_once():
    echo = Echo(0.02)
    writer = Batched(echo, 1, 10)
    long, short = Listener("x" * 300), Listener("short")
    writer.submit(long.job)
    writer.submit(short.job)
    writer.cancel(long.job)
    assert short.answer() == "short"
    assert len(long.tokens) < 300
    writer.close()
    assert not echo.prompts


def test_an_error_ends_what_was_under_way_and_nothing_else():
    writer = Batched(Echo(fails_on="poison"), 8, 10)
    bad = Listener("this is poison")
    writer.submit(bad.job)
    bad.answer()
    assert bad.end is not None
    assert isinstance(bad.end.error, ValueError)
    good = Listener("this is not")
    writer.submit(good.job)
    assert good.answer() == good.text
    writer.close()


def test_a_prompt_that_a_model_fails_on_ends_no_other_answer():
    go = threading.Event()
    echo = Held(go)
    echo.fails_on = tokenizer()("poison")["input_ids"]
    writer = Batched(echo, 8, 10)
    listeners = [Listener(text) for text in ("before", "this is poison", "after", "x" * 300)]
    for listener in listeners:
        writer.submit(listener.job)
    go.set()
    for listener in listeners:
        listener.answer()
    assert isinstance(listeners.pop(1).end.error, ValueError)  # pyright: ignore
    assert all(listener.answer() == listener.text for listener in listeners)
    writer.close()
    assert not echo.prompts


@pytest.mark.parametrize("delegated", [False, True])
def test_who_left_takes_no_place_in_the_queue(delegated: bool):
    slow: Writer = Delegated(EchoDecoder(0.02), 1, 2) if delegated else Batched(Echo(0.02), 1, 2)
    first = Listener("x" * 300)
    slow.submit(first.job)
    for _ in range(20):  # as many come and go as the queue never held
        gone = Listener("gone")
        slow.submit(gone.job)
        slow.cancel(gone.job)
    last = Listener("last")
    slow.submit(last.job)
    slow.cancel(first.job)
    assert last.answer() == "last"
    slow.close()
    assert (slow.waiting, slow.running) == (0, 0)


@pytest.mark.parametrize("make", [lambda: Batched(Echo(0.01), 1, 9), lambda: _slow()])
def test_closing_ends_everything(make: Any):
    writer: Writer = make()
    listeners = [Listener("x" * 300) for _ in range(3)]
    for listener in listeners:
        writer.submit(listener.job)
    writer.close()
    for listener in listeners:
        listener.answer()
        assert listener.end is not None
        assert isinstance(listener.end.error, Stopped)
    with pytest.raises(Stopped):
        writer.submit(Listener("late").job)


def _slow() -> Writer:
    return Delegated(EchoDecoder(0.01), 1, 9)


def test_texts_are_gathered_and_told_apart():
    shapes: list[tuple[int, int]] = []

    def forward(ids: Any, mask: Any) -> Any:
        shapes.append(ids.shape)
        return lengths(ids, mask)

    gatherer = Gatherer(forward, Bounds(8, 100, 0.3), 0)
    texts = [[number + 1] * (1 + 40 * (number % 2)) for number in range(16)]
    futures = [future for text in texts for future in gatherer.submit([text])]
    for text, future in zip(texts, futures, strict=True):
        assert future.result(60).tolist() == [len(text), sum(text)]
    gatherer.close()
    assert len(shapes) < 16
    assert max(rows for rows, _ in shapes) <= 8
    assert {length for _, length in shapes} == {1, 41}  # short ones are not padded to long ones


def test_the_text_that_waited_longest_runs_first_with_those_of_its_length():
    begin, go = threading.Event(), threading.Event()
    shapes: list[tuple[int, int]] = []

    def forward(ids: Any, mask: Any) -> Any:
        begin.set()
        assert go.wait(60)
        shapes.append(ids.shape)
        return lengths(ids, mask)

    gatherer = Gatherer(forward, Bounds(4, 100, 0.0), 0)
    first = gatherer.submit([[1]])
    assert begin.wait(60)
    texts = [[7] * length for length in (300, 2, 290, 3, 2, 310, 3, 2)]
    futures = [*first, *gatherer.submit(texts)]
    go.set()
    assert [future.result(60)[0] for future in futures] == [1, *map(len, texts)]
    gatherer.close()
    assert shapes == [(1, 1), (3, 310), (3, 2), (2, 3)]


def test_an_error_of_an_encoder_is_told_and_the_next_text_answered():
    def forward(ids: Any, mask: Any) -> Any:
        if (ids == 13).any():
            raise ValueError("unlucky")
        return lengths(ids, mask)

    gatherer = Gatherer(forward, Bounds(2, 100, 0.0), 0)
    bad, good = gatherer.submit([[13], [14]])  # of like length: they run together
    with pytest.raises(ValueError, match="unlucky"):
        bad.result(60)
    assert good.result(60).tolist() == [1, 14]
    canceled = gatherer.submit([[15]])[0]
    canceled.cancel()
    assert gatherer.submit([[16]])[0].result(60).tolist() == [1, 16]
    gatherer.close()
    with pytest.raises(Stopped):
        gatherer.submit([[1]])


def test_a_full_queue_of_texts_is_refused_whole():
    begin, go = threading.Event(), threading.Event()

    def forward(ids: Any, mask: Any) -> Any:
        begin.set()
        go.wait(60)
        return lengths(ids, mask)

    gatherer = Gatherer(forward, Bounds(1, 3, 0.0), 0)
    first = gatherer.submit([[1]])
    begin.wait(60)
    more = gatherer.submit([[2], [3]])
    with pytest.raises(QueueFull):
        gatherer.submit([[4], [5]])
    for _ in range(4):  # who left takes no place in the queue
        gone = gatherer.submit([[9]])[0]
        gone.cancel()
    go.set()
    assert [future.result(60)[1] for future in (*first, *more)] == [1, 2, 3]
    gatherer.close()
