"""/v1/chat/completions, as OpenAI's clients know it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request

from attar.serve.errors import ApiError
from attar.serve.generation import (
    Stream,
    Wish,
    answer_to,
    collect,
    language_model,
    token_text,
)
from attar.serve.opening import Loaded
from attar.serve.prompts import chat_ids
from attar.serve.schemas import Chat
from attar.serve.service import Events, Service, new_id, now, unless_gone
from attar.serve.writing import Answer, Piece, Written


def routes(service: Service) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=None)
    async def chat(asked: Chat, request: Request) -> Any:
        """Answer a chat: whole, or as server-sent events where `stream` is true."""
        head = {"id": new_id("chatcmpl"), "created": now()}
        if asked.stream:
            return await _stream(service, request, asked, head)
        return await unless_gone(request, _whole(service, request, asked, head), service)

    return router


async def _answer(service: Service, model: Loaded, asked: Chat) -> Answer:
    language_model(model)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", None, "top_logprobs")
    ids = await chat_ids(model, asked.messages)
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    limit = asked.max_completion_tokens or asked.max_tokens
    field = "max_completion_tokens" if asked.max_completion_tokens else "max_tokens"
    return answer_to(model, ids, asked, Wish(limit, None, top, field), service.settings.limits)


async def _whole(service: Service, request: Request, asked: Chat, head: dict[str, Any]) -> Any:
    async with service.pool.use(asked.model) as model:
        answer = await _answer(service, model, asked)
        whole = await collect(answer, service, model.name)
        usage = service.usage(request, model.name, len(answer.ask.prompt), answer.count)
        return {
            **head,
            "object": "chat.completion",
            "model": model.name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": whole.text, "refusal": None},
                    "logprobs": await asyncio.to_thread(_logprobs, model, asked, whole.tokens),
                    "finish_reason": whole.reason,
                }
            ],
            "usage": usage,
        }


async def _stream(service: Service, request: Request, asked: Chat, head: dict[str, Any]) -> Events:
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(service.pool.use(asked.model))
        answer = await _answer(service, model, asked)
        stack.callback(answer.cancel)
        answer.begin()  # a full queue is told with its status, before the stream begins
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        stream = Stream([answer], service, request, model.name, usage)
        held = stack.pop_all()

    def start() -> dict[str, Any]:
        return {**head, "object": "chat.completion.chunk", "model": model.name}

    def part(delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> Any:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**start(), "choices": [choice]}

    def chunk(_: int, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text else {}
        return part(delta, _logprobs(model, asked, piece.tokens), piece.reason)

    opening = [part({"role": "assistant", "content": ""})]
    return Events(stream.events(chunk, start, opening), held, service.settings.limits.seconds)


def _logprobs(model: Loaded, asked: Chat, tokens: Any) -> dict[str, Any] | None:
    if not asked.logprobs:
        return None
    return {"content": [_logprob(model, each) for each in tokens], "refusal": None}


def _logprob(model: Loaded, written: Written) -> dict[str, Any]:
    token = written.token
    return {
        **_named(model, token.id, token.logprob),
        "top_logprobs": [_named(model, *each) for each in token.top],
    }


def _named(model: Loaded, token: int, logprob: float) -> dict[str, Any]:
    text, told = token_text(model, token)
    return {"token": text, "logprob": finite(logprob), "bytes": told}


def finite(logprob: float) -> float:
    """A number that JSON can hold: engines say minus infinity of what cannot come."""
    return logprob if logprob > -9999.0 else -9999.0
