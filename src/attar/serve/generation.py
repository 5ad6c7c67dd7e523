"""What chat and completions share: reading the request, collecting or streaming the answer."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from attar.data.spelling import bytes_of
from attar.serve.errors import ApiError
from attar.serve.log import log
from attar.serve.opening import Loaded
from attar.serve.prompts import too_long
from attar.serve.schemas import Generation
from attar.serve.service import Service
from attar.serve.settings import Limits
from attar.serve.text import UNFINISHED
from attar.serve.writing import Answer, Ask, Piece, Written, sampling

DONE = "data: [DONE]\n\n"


def language_model(model: Loaded) -> Loaded:
    """The model, if it writes. Raises ApiError."""
    if model.writer is None:
        raise ApiError(
            400, f"{model.name} is no language model (its task: {model.task})", None, "model"
        )
    return model


@dataclass(frozen=True)
class Wish:
    """How much is to be written, and how many log-probabilities with it.

    `goes_on`: the text begins as it does behind the prompt, with a space where one parts them.
    """

    limit: int | None
    default: int | None
    top: int | None
    field: str = "max_tokens"
    goes_on: bool = False


def answer_to(
    model: Loaded, ids: Sequence[int], asked: Generation, wish: Wish, limits: Limits
) -> Answer:
    """The answer to a prompt, not begun. Raises ApiError where it asks for too much."""
    room = model.context - len(ids)
    if room < 1:
        raise too_long(model, len(ids), "messages" if wish.default is None else "prompt", 1)
    if wish.limit is not None:
        if wish.limit > limits.tokens:
            raise ApiError(400, f"an answer may have {limits.tokens} tokens here", None, wish.field)
        if wish.limit > room:
            raise too_long(model, len(ids), wish.field, wish.limit)
    limit = wish.limit or min(wish.default or limits.tokens, limits.tokens, room)
    drawn = sampling(
        1.0 if asked.temperature is None else asked.temperature,
        1.0 if asked.top_p is None else asked.top_p,
        asked.top_k,
        asked.seed,
    )
    ask = Ask(ids, limit, drawn, asked.stops(), wish.top, wish.goes_on)
    assert model.writer is not None  # `language_model` has seen to it
    return Answer(ask, model.writer, model.tokenizer, model.ends, limits)


@dataclass(frozen=True)
class Whole:
    """A whole answer."""

    text: str
    tokens: list[Written]
    reason: str


async def collect(answer: Answer, service: Service, name: str) -> Whole:
    """Wait for all of an answer."""
    text: list[str] = []
    tokens: list[Written] = []
    reason = "stop"
    async with aclosing(_timed(answer, service, name)) as pieces:
        async for piece in pieces:
            text.append(piece.text)
            tokens += piece.tokens
            reason = piece.reason or reason
    return Whole("".join(text), tokens, reason)


async def collect_all(answers: Sequence[Answer], service: Service, name: str) -> list[Whole]:
    """Wait for several answers; where one fails, none is waited for any longer."""
    tasks = [asyncio.ensure_future(collect(answer, service, name)) for answer in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _timed(answer: Answer, service: Service, name: str) -> AsyncGenerator[Piece]:
    """The pieces; the time until the first token is counted."""
    start, first = time.perf_counter(), True
    async with aclosing(answer.pieces()) as pieces:
        async for piece in pieces:
            if first:
                service.metrics.first.labels(name).observe(time.perf_counter() - start)
                first = False
            yield piece


@dataclass
class Stream:
    """Answers that are sent as they are written, one or several side by side."""

    answers: list[Answer]
    service: Service
    request: Request
    name: str
    usage: bool

    async def events(
        self,
        chunk: Callable[[int, Piece], dict[str, Any]],
        head: Callable[[], dict[str, Any]],
        opening: Sequence[dict[str, Any]] = (),
    ) -> AsyncGenerator[str]:
        """Server-sent events: a chunk a piece, then the token counts, then the end."""
        counts: dict[str, int] | None = None
        metrics, more = self.service.metrics, {"usage": None} if self.usage else {}
        canceled = True  # unless it comes to its end here
        try:
            for first in opening:
                yield _event({**first, **more})
            async with aclosing(self._together()) as pieces:
                async for index, piece in pieces:
                    yield _event({**chunk(index, piece), **more})
            counts, canceled = self._usage(), False
            if self.usage:
                yield _event({**head(), "choices": [], "usage": counts})
            yield DONE
        except ApiError as error:
            canceled = False
            metrics.broken.inc()
            self.service.note(self.request, error=error.message)
            if error.__cause__ is not None:
                log("failed", logging.ERROR, error.__cause__, path=self.request.url.path)
            yield f"data: {error.text()}\n\n"
        finally:
            metrics.canceled.inc(canceled)
            if counts is None:
                self._usage()

    def _usage(self) -> dict[str, int]:
        prompt = sum(len(answer.ask.prompt) for answer in self.answers)
        written = sum(answer.count for answer in self.answers)
        return self.service.usage(self.request, self.name, prompt, written)

    async def _together(self) -> AsyncGenerator[tuple[int, Piece]]:
        """Pieces of all answers, in the order in which they come."""
        queue: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()

        async def follow(index: int, answer: Answer) -> None:
            try:
                async with aclosing(_timed(answer, self.service, self.name)) as pieces:
                    async for piece in pieces:
                        queue.put_nowait((index, piece))
            except Exception as error:  # handed on to whoever reads the queue
                queue.put_nowait(error)

        tasks = [asyncio.create_task(follow(*each)) for each in enumerate(self.answers)]
        try:
            left = len(tasks)
            while left:
                news = await queue.get()
                if isinstance(news, Exception):
                    raise news
                left -= news[1].reason is not None
                yield news
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _event(plain: dict[str, Any]) -> str:
    return f"data: {json.dumps(plain, ensure_ascii=False, separators=(',', ':'))}\n\n"


def token_text(model: Loaded, token: int) -> tuple[str, list[int] | None]:
    r"""A token's own text, and its bytes; special ones are shown.

    Of a part of a character the text is `bytes:\xe4`, as OpenAI has it.
    """
    text = model.tokenizer.decode([token], skip_special_tokens=False)
    if UNFINISHED not in text:
        return text, list(text.encode("utf-8"))
    known = bytes_of(model.tokenizer.convert_ids_to_tokens(token))
    if known is None:
        return text, None
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in known), list(known)
