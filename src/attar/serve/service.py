"""What every endpoint works with, and how it watches its client."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import StreamingResponse

from attar.serve.errors import ApiError
from attar.serve.limits import Gate
from attar.serve.metrics import Metrics
from attar.serve.models import Pool
from attar.serve.settings import Settings

T = TypeVar("T")
_SPARE = 5.0  # seconds beyond the limit until a reader that reads nothing is cut off


@dataclass(frozen=True)
class Service:
    """A server's parts."""

    settings: Settings
    pool: Pool
    metrics: Metrics
    gate: Gate

    def note(self, request: Request, **facts: Any) -> None:
        """Put facts into the request's line of the log."""
        request.scope.setdefault("attar", {}).update(facts)

    def usage(self, request: Request, model: str, prompt: int, written: int) -> dict[str, int]:
        """Count tokens, and say how many."""
        self.metrics.tokens.labels(model, "prompt").inc(prompt)
        self.metrics.tokens.labels(model, "written").inc(written)
        self.note(request, model=model, prompt_tokens=prompt, completion_tokens=written)
        total = prompt + written
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": total}


def new_id(prefix: str) -> str:
    """A name for an answer."""
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    """The time as OpenAI writes it."""
    return int(time.time())


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], service: Service) -> T:
    """Do something for a client, and stop at once when it goes away."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            service.metrics.canceled.inc()
            raise ApiError(499, "the client went away")
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Events(StreamingResponse):
    """Server-sent events; a reader that stops reading is cut off in the end.

    `held` is let go of however the stream ends, even where it never began.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str], held: AsyncExitStack, seconds: float) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._events, self._held, self._seconds = events, held, seconds + _SPARE

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:  # all that can be done is to break off; the server hangs up
            scope.setdefault("attar", {})["error"] = "the client did not read its answer in time"
        finally:
            await self._events.aclose()
            await self._held.aclose()
