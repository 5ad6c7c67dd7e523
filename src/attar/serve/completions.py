"""/v1/completions: one prompt or several, each gone on with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request

from attar.serve.chat import finite
from attar.serve.generation import (
    Stream,
    Wish,
    answer_to,
    collect_all,
    language_model,
    token_text,
)
from attar.serve.opening import Loaded
from attar.serve.prompts import prompt_ids
from attar.serve.schemas import Completion
from attar.serve.service import Events, Service, new_id, now, unless_gone
from attar.serve.writing import Answer, Piece, Written

_DEFAULT = 16  # tokens, as OpenAI has it


def routes(service: Service) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/completions", response_model=None)
    async def completions(asked: Completion, request: Request) -> Any:
        """Go on with one text or several: whole, or as server-sent events."""
        head = {"id": new_id("cmpl"), "object": "text_completion", "created": now()}
        if asked.stream:
            return await _stream(service, request, asked, head)
        return await unless_gone(request, _whole(service, request, asked, head), service)

    return router


async def _answers(service: Service, model: Loaded, asked: Completion) -> list[Answer]:
    language_model(model)
    limits = service.settings.limits
    wish = Wish(asked.max_tokens, _DEFAULT, asked.logprobs, goes_on=True)
    most = min(limits.texts, limits.queue)  # more would never be taken, however long one waits
    rows = await prompt_ids(model, asked.prompt, most, "prompt")
    return [answer_to(model, ids, asked, wish, limits) for ids in rows]


async def _whole(
    service: Service, request: Request, asked: Completion, head: dict[str, Any]
) -> Any:
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(service.pool.use(asked.model))
        answers = await _answers(service, model, asked)
        for answer in answers:
            stack.callback(answer.cancel)
            answer.begin()
        wholes = await collect_all(answers, service, model.name)
        prompt = sum(len(answer.ask.prompt) for answer in answers)
        written = sum(answer.count for answer in answers)
        told = await asyncio.to_thread(  # texts of thousands of tokens would hold up all others
            lambda: [_logprobs(model, asked, whole.tokens) for whole in wholes]
        )
        choices = [
            _choice(index, whole.text, logprobs, whole.reason)
            for index, (whole, logprobs) in enumerate(zip(wholes, told, strict=True))
        ]
        usage = service.usage(request, model.name, prompt, written)
        return {**head, "model": model.name, "choices": choices, "usage": usage}


async def _stream(
    service: Service, request: Request, asked: Completion, head: dict[str, Any]
) -> Events:
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(service.pool.use(asked.model))
        answers = await _answers(service, model, asked)
        for answer in answers:
            stack.callback(answer.cancel)
            answer.begin()  # a full queue is told with its status, before the stream begins
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        stream = Stream(answers, service, request, model.name, usage)
        held = stack.pop_all()

    def start() -> dict[str, Any]:
        return {**head, "model": model.name}

    def chunk(index: int, piece: Piece) -> dict[str, Any]:
        logprobs = _logprobs(model, asked, piece.tokens)
        return {**start(), "choices": [_choice(index, piece.text, logprobs, piece.reason)]}

    return Events(stream.events(chunk, start), held, service.settings.limits.seconds)


def _choice(index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(model: Loaded, asked: Completion, tokens: Sequence[Written]) -> dict[str, Any] | None:
    if asked.logprobs is None:
        return None
    return {
        "tokens": [token_text(model, each.token.id)[0] for each in tokens],
        "token_logprobs": [finite(each.token.logprob) for each in tokens],
        "top_logprobs": [_likeliest(model, each) for each in tokens],
        "text_offset": [each.offset for each in tokens],
    }


def _likeliest(model: Loaded, written: Written) -> dict[str, float]:
    """The likeliest tokens by their texts; of several that have one text, the likeliest."""
    found: dict[str, float] = {}
    for token, logprob in written.token.top:
        found.setdefault(token_text(model, token)[0], finite(logprob))
    return found
