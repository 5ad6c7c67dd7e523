"""One answer as the server gives it out: text in pieces, stop words, bounds on time."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from attar.runtimes.runtime import Sampling, Token
from attar.serve.batching import End, Job, QueueFull, Stopped, Writer
from attar.serve.errors import ApiError, busy
from attar.serve.settings import Limits
from attar.serve.text import Stops, Unfolding

_BEFORE = 8  # tokens of a prompt behind which the first one of an answer is told
_COLDEST = 1e-5  # a temperature below it takes the likeliest, and logits divided by it overflow


@dataclass(frozen=True)
class Ask:
    """What is to be written: the prompt's tokens, how many more at most, how, and up to what."""

    prompt: Sequence[int]
    limit: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    top: int | None = None
    goes_on: bool = False


@dataclass(frozen=True)
class Written:
    """A token, and where its text begins in the answer."""

    token: Token
    offset: int


@dataclass(frozen=True)
class Piece:
    """More text, the tokens that it came of, and why nothing comes after it, if so."""

    text: str
    tokens: tuple[Written, ...] = ()
    reason: str | None = None


@dataclass
class Answer:
    """An answer that is being written; iterate over it once, and close it."""

    ask: Ask
    writer: Writer
    tokenizer: Any
    ends: frozenset[int]
    limits: Limits
    count: int = 0  # tokens written so far
    _queue: asyncio.Queue[Token | End] = field(default_factory=asyncio.Queue)
    _job: Job | None = None

    async def pieces(self) -> AsyncGenerator[Piece]:
        """The answer's text as it comes; the last piece has a reason. Raises ApiError."""
        self.begin()
        try:
            async for piece in self._unfold():
                yield piece
        finally:
            self.cancel()

    def begin(self) -> None:
        """Put the prompt into the queue, once. Raises ApiError where that is full."""
        if self._job is not None:
            return
        loop = asyncio.get_running_loop()

        def tell(news: Token | End) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._queue.put_nowait, news)

        ask = self.ask
        job = Job(ask.prompt, ask.limit, ask.sampling, self.ends, tell, ask.top)
        try:
            self.writer.submit(job)
        except QueueFull as error:
            raise busy(f"{error}; try again in a moment", "queue_full", 429) from None
        except Stopped as error:
            raise busy(str(error), "unavailable") from None
        self._job = job

    def cancel(self) -> None:
        """Write no more."""
        if self._job is not None:
            self.writer.cancel(self._job)

    def _before(self) -> Sequence[int]:
        return self.ask.prompt[-_BEFORE:] if self.ask.goes_on else ()

    async def _unfold(self) -> AsyncGenerator[Piece]:
        text, stops = Unfolding(self.tokenizer, self._before()), Stops(self.ask.stop)
        held: list[Written] = []
        read = told = 0
        async for news in self._news():  # closed with this generator: it holds nothing
            if isinstance(news, End):
                rest = stops.push(text.finish())
                rest = rest if stops.hit else rest + stops.finish()
                yield Piece(rest, tuple(held), "stop" if stops.hit else news.reason)
                return
            self.count += 1
            held.append(Written(news, read))
            new = "" if news.id in self.ends else text.push(news.id)
            read += len(new)
            out = stops.push(new)
            told += len(out)
            if stops.hit:
                kept = tuple(each for each in held if each.offset < told)
                yield Piece(out, kept, "stop")
                return
            if out:
                yield Piece(out, tuple(held))
                held = []

    async def _news(self) -> AsyncGenerator[Token | End]:
        """Tokens as they come, within the bounds on time."""
        limits, loop = self.limits, asyncio.get_running_loop()
        begun = loop.time()
        patience = min(limits.queue_seconds, limits.seconds)
        while True:
            try:
                async with asyncio.timeout_at(begun + patience):
                    news = await self._queue.get()
            except TimeoutError:
                raise self._late(patience) from None
            patience = limits.seconds
            if isinstance(news, End) and news.error is not None:
                raise failed(news.error)
            yield news

    def _late(self, patience: float) -> ApiError:
        if self.count == 0 and patience < self.limits.seconds:
            return busy(f"the model did not begin within {patience:g} s", "queue_timeout")
        return ApiError(
            504, f"the answer was not whole within {self.limits.seconds:g} s", "timeout"
        )


def failed(error: Exception, on: str = "prompt") -> ApiError:
    """What a client is told where the model's work ended in an error."""
    if isinstance(error, Stopped):
        return busy(str(error), "unavailable")
    if isinstance(error, MemoryError):
        return busy("memory ran out", "out_of_memory")
    told = ApiError(500, f"the model failed on this {on}", "model_error")
    told.__cause__ = error  # the log shows it, the client does not see it
    return told


def sampling(temperature: float, top_p: float, top_k: int | None, seed: int | None) -> Sampling:
    """How to draw, as a request says it; a seed of its own where it gives none."""
    return Sampling(
        temperature if temperature > _COLDEST else 0.0,
        top_k or None,
        top_p if top_p < 1 else None,
        secrets.randbits(48) if seed is None else seed % 2**63,
    )
