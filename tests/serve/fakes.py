"""A tokenizer of bytes, models that answer with what they were asked, and a server in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from attar.runtimes.runtime import Decoder, Floats, Sampling, Token
from attar.serve.app import create_app
from attar.serve.batching import Batched
from attar.serve.gathering import Bounds, Gatherer
from attar.serve.models import Pool
from attar.serve.opening import Loaded
from attar.serve.run import Server, bind, config
from attar.serve.settings import Limits, Settings, Source

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
LABELS = ("even", "odd")
_GREEDY = Sampling()


@cache
def tokenizer() -> Any:
    """A token a byte, and `</s>` at the end of the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: index for index, word in enumerate([*alphabet, "</s>"])}
    plain = Tokenizer(models.BPE(vocab=words, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>")
    found.chat_template = TEMPLATE
    return found


class Echo:
    """A batch whose rows write their prompt once more, token by token, and then end."""

    def __init__(self, seconds: float = 0.0, fails_on: str | None = None) -> None:
        self.seconds = seconds
        self.fails_on = None if fails_on is None else tokenizer()(fails_on)["input_ids"]
        self.prompts: dict[int, list[int]] = {}
        self.written: dict[int, int] = {}
        self.most = self.tokens = 0

    def extend(self, given: Mapping[int, Sequence[int]]) -> dict[int, NDArray[np.float32]]:
        time.sleep(self.seconds)
        for row, ids in given.items():
            if row in self.prompts and list(ids) == self._next(row):  # not a prompt's last part
                self.written[row] += 1
                self.tokens += 1
            else:
                self.prompts.setdefault(row, []).extend(ids)
                self.written[row] = 0
            if self.fails_on is not None and _within(self.fails_on, self.prompts[row]):
                raise ValueError("this prompt is poison")
        self.most = max(self.most, len(self.prompts))
        return {row: self._logits(row) for row in given}

    def _next(self, row: int) -> list[int]:
        prompt, written = self.prompts[row], self.written[row]
        return prompt[written : written + 1] or [256]

    def _logits(self, row: int) -> NDArray[np.float32]:
        logits = np.zeros(257, np.float32)
        logits[self._next(row)] = 20.0
        return logits

    def drop(self, row: int) -> None:
        self.prompts.pop(row, None)
        self.written.pop(row, None)

    def clear(self) -> None:
        self.prompts.clear()
        self.written.clear()


def _within(inner: list[int], outer: list[int]) -> bool:
    return any(outer[at : at + len(inner)] == inner for at in range(len(outer)))


class EchoDecoder(Decoder):
    """The same as an engine of its own."""

    engine = "echo"
    context = 512

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.closed = seconds, False

    def logprobs(self, ids: Sequence[int]) -> Floats:
        raise NotImplementedError

    def generate(
        self,
        prompt: Sequence[int],
        limit: int,
        sampling: Sampling = _GREEDY,
        stop: Sequence[int] = (),
        top: int = 0,
    ) -> Iterator[Token]:
        for token in [*prompt, 256][:limit]:
            time.sleep(self.seconds)
            yield Token(token, -0.5)

    def close(self) -> None:
        self.closed = True


def parity(ids: Any, mask: Any) -> Any:
    """Logits of two classes: whether a text has an odd number of tokens."""
    odd = mask.sum(1) % 2
    return np.stack([1.0 - odd, 1.0 * odd], 1).astype(np.float32)


def lengths(ids: Any, mask: Any) -> Any:
    """An embedding that tells texts apart: how many tokens, and their sum."""
    return np.stack([mask.sum(1), (ids * mask).sum(1)], 1).astype(np.float32)


def opener(make: Callable[[], Any] = Echo) -> Callable[[Source, Settings], Loaded]:
    """Opens fakes by their names: `kinds`, `vectors`, and anything else writes."""

    def open_(source: Source, settings: Settings) -> Loaded:
        limits = settings.limits
        common: dict[str, Any] = {
            "name": source.name,
            "engine": "fake",
            "tokenizer": tokenizer(),
            "size": 100,
            "context": limits.context,
        }
        bounds = Bounds(limits.batch, limits.queue, limits.window)
        if source.name == "kinds":
            load = Gatherer(parity, bounds, 0)
            return Loaded(task="classification", load=load, labels=LABELS, **common)
        if source.name == "vectors":
            return Loaded(task="embedding", load=Gatherer(lengths, bounds, 0), **common)
        batched = Batched(make(), limits.batch, limits.queue)
        return Loaded(task="causal-lm", load=batched, ends=frozenset({256}), **common)

    return open_


@dataclass
class Running:
    """A server that runs in a thread."""

    url: str
    port: int
    app: Any
    server: Server

    @property
    def pool(self) -> Pool:
        return self.app.state.service.pool

    def idle(self, seconds: float = 60.0) -> bool:
        """Whether every model comes to rest within that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            loads = [model.load for model in self.pool.loaded().values()]
            if not any(load.waiting or load.running for load in loads):
                return True
            time.sleep(0.01)
        return False


def settings(*names: str, limits: Mapping[str, Any] | None = None, **others: Any) -> Settings:
    """Settings of a server of fakes."""
    sources = tuple(Source(name=name, path=name) for name in names or ("echo",))
    return Settings(models=sources, limits=Limits(**(limits or {})), **others)


@contextmanager
def running(
    given: Settings, open_: Callable[[Source, Settings], Loaded] | None = None, idle: int = 30
) -> Iterator[Running]:
    """A real server on a free port."""
    pool = Pool(given, open_ or opener(), lambda source: 100) if open_ is not REAL else Pool(given)
    app = create_app(given, pool)
    listening: socket.socket = bind("127.0.0.1", 0)
    server = Server(config(app, idle), app.state.service.gate, 30.0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        end = time.monotonic() + 60
        while not pool.ready and time.monotonic() < end:
            assert thread.is_alive()
            time.sleep(0.01)
        assert pool.ready
        port = listening.getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", port, app, server)
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
    assert not thread.is_alive()


REAL: Any = object()  # in the place of an opener: load what the sources name
