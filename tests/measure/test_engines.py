"""Timing an exported model: what is asked of the engine, and what is made of the seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attar.errors import AttarError
from attar.measure import engine_probe
from attar.measure.engine_probe import EngineRequest, measure
from attar.measure.engines import time_engine
from attar.models import save
from attar.runtimes.runtime import Decoder, Encoder, Token
from tiny_models import tiny

ROWS = [[10 + row, 20, 30, 40, 50] for row in range(4)]
LATENCIES = {"latency_p50", "latency_p95"}


class Clock:
    """Time that passes when an engine says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Reads(Encoder):
    """Takes a second for its first call, then a tenth for a call and a hundredth for each text."""

    engine = "fake"

    def __init__(self, clock: Clock) -> None:
        self.clock, self.asked = clock, list[tuple[int, ...]]()

    def run(self, ids: Any, mask: Any) -> Any:
        assert mask.shape == ids.shape
        assert mask.all()
        assert ids.flags["C_CONTIGUOUS"]
        self.clock.now += 0.1 + 0.01 * len(ids) if self.asked else 1.0
        self.asked.append(ids.shape)
        return np.zeros((len(ids), 2), np.float32)

    def close(self) -> None:
        self.clock.now += 100


class Writes(Decoder):
    """Takes half a second for a prompt, and a tenth or a fifth for each token after it."""

    engine = "fake"
    context = 64

    def __init__(self, clock: Clock) -> None:
        self.clock, self.prompts = clock, list[list[int]]()

    def logprobs(self, ids: Any) -> Any:
        raise NotImplementedError

    def generate(self, prompt: Any, limit: int, *_: Any, **__: Any) -> Iterator[Token]:
        self.prompts.append(list(prompt))
        for count in range(limit):
            self.clock.now += 0.5 if count == 0 else (0.1, 0.2)[count % 2]
            yield Token(7, -1.0)

    def close(self) -> None:
        self.clock.now += 100


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(engine_probe.time, "perf_counter", found.perf_counter)
    return found


def timed(opened: Any, monkeypatch: pytest.MonkeyPatch, rows: list[list[int]]) -> Any:
    class Fake:
        def open(self, folder: Path, threads: int | None) -> Any:
            opened.clock.now += 3
            return opened

        def version(self) -> str:
            return "fake 1.0"

    monkeypatch.setattr(engine_probe, "find", lambda name: Fake())
    return measure(EngineRequest("there", "fake", rows, 1, 4))


def test_encoders_by_the_text(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Reads(clock)
    found = timed(opened, monkeypatch, ROWS)
    assert found.keys() == {"texts_per_second", *LATENCIES, "load", "peak_memory"}
    assert found["texts_per_second"].value == pytest.approx(4 / 0.14)
    assert found["latency_p50"].value == pytest.approx(110)  # without the first call's second
    assert found["latency_p95"].value == pytest.approx(110)
    assert found["load"].value == 3
    assert found["texts_per_second"].note == (
        "batch 4, texts of 5 tokens, after a warm-up; fake 1.0, 1 thread"
    )
    assert found["latency_p50"].note.startswith("batch 1, texts of 5 tokens")
    shapes = {shape: opened.asked.count(shape) for shape in opened.asked}
    assert shapes == {(1, 5): 21, (4, 5): 21}  # once to warm up


def test_slow_encoders_are_asked_thrice(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_probe, "SECONDS", 0.1)
    opened = Reads(clock)
    found = timed(opened, monkeypatch, ROWS)
    assert [shape[0] for shape in opened.asked] == [*[1] * 4, *[4] * 4]
    assert found["texts_per_second"].value == pytest.approx(4 / 0.14)


def test_decoders_by_the_token(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Writes(clock)
    found = timed(opened, monkeypatch, ROWS[:1])
    rates = {"tokens_per_second", "first_token"}
    assert found.keys() == {*rates, *LATENCIES, "load", "peak_memory"}
    assert found["tokens_per_second"].value == pytest.approx(3 / 0.5)
    assert found["first_token"].value == pytest.approx(500)
    assert found["latency_p50"].value == pytest.approx(200)
    assert opened.prompts[0] == ROWS[0]  # to warm up
    rounds = opened.prompts[1:]
    assert len(rounds) == engine_probe.ROUNDS
    assert len({tuple(ids) for ids in rounds}) == len(rounds)  # none is served from a cache
    assert all(sorted(ids) == sorted(ROWS[0]) for ids in rounds)


def test_an_encoder_in_a_fresh_process(tmp_path: Path) -> None:
    save(tiny("bert", "classification"), tmp_path)
    found = time_engine(tmp_path, "torch", ROWS, threads=1)
    assert found.keys() == {"texts_per_second", *LATENCIES, "load", "peak_memory"}
    assert all(figure.value > 0 for figure in found.values())
    assert found["latency_p50"].value <= found["latency_p95"].value
    assert found["texts_per_second"].note.startswith("batch 4, texts of 5 tokens")
    assert found["peak_memory"].value > 5e7


def test_what_goes_wrong_there_is_told_here(tmp_path: Path) -> None:
    with pytest.raises(AttarError, match=r"no engine is called 'warp'.*\. Wait a while$"):
        time_engine(tmp_path, "warp", ROWS, advice="Wait a while")


@pytest.mark.parametrize(("most", "told"), [(1, {"first_token"}), (0, set())])
def test_a_decoder_that_ends_at_once_has_no_speed(
    most: int, told: set[str], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ends(Writes):
        def generate(self, prompt: Any, limit: int, *_: Any, **__: Any) -> Iterator[Token]:
            return super().generate(prompt, min(limit, most))

    found = timed(Ends(clock), monkeypatch, ROWS[:1])
    assert found.keys() == {*told, "load", "peak_memory"}
