"""What stands before every request: an id, keys, bounds on the body, the log and the counts."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from attar.serve.auth import OPEN, Keys
from attar.serve.errors import ApiError, busy
from attar.serve.log import log, since
from attar.serve.metrics import Metrics
from attar.serve.settings import Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CROWDED = "attar_crowded"  # in the state of a connection that is one too many
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Gate:
    """Whether requests are let in, and how many are inside."""

    def __init__(self) -> None:
        self.draining = False
        self.inside = 0

    def check(self) -> None:
        """Raise ApiError once the server is about to end."""
        if self.draining:
            raise busy("the server is about to end", "draining")


class Door:
    """Every request's way in and out. Pure ASGI, so that nothing is buffered on the way out."""

    def __init__(self, app: App, limits: Limits, keys: Keys, gate: Gate, metrics: Metrics) -> None:
        self._app, self._limits, self._keys = app, limits, keys
        self._gate, self._metrics = gate, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, send)
        if visit.method == "HEAD":  # answered as GET is, and uvicorn leaves the body out
            scope = {**scope, "method": "GET"}
        work = visit.method == "POST"
        self._gate.inside += work
        try:
            await self._let_in(scope, receive, visit)
        except ApiError as error:
            visit.failed(error)
            await visit.answer(error, scope, receive)
        except Exception as error:  # a mistake of ours: the client learns that, the log learns what
            log("failed", logging.ERROR, error, id=visit.id, path=scope["path"])
            fault = ApiError(500, "something went wrong here; the log says what", "internal_error")
            await visit.answer(fault, scope, receive)
        finally:
            self._gate.inside -= work
            self._note(scope, visit)

    async def _let_in(self, scope: Scope, receive: Receive, visit: _Visit) -> None:
        if CROWDED in scope.get("state", ()) and scope["path"] not in OPEN:
            raise busy("too many connections are open; try again in a moment", "connections")
        headers = {name.lower(): value for name, value in scope["headers"]}
        self._keys.check(scope["path"], headers)
        if scope["method"] == "POST":
            self._gate.check()
        body = await self._body(headers.get(b"content-length"), receive)
        if body is None:
            return
        await self._app(scope, _replayed(body, receive), visit.send)

    async def _body(self, length: bytes | None, receive: Receive) -> bytes | None:
        """The whole body; None where the client went away. Raises ApiError where it is too much."""
        most, body = self._limits.body, bytearray()
        too_much = ApiError(413, f"a request's body may have {most:,} bytes", "body_too_large")
        if length is not None and length.isdigit() and int(length[:20]) > most:
            raise too_much
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_much
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            seconds = self._limits.body_seconds
            raise ApiError(
                408, f"the request's body did not come within {seconds:g} s", "slow_body"
            ) from None

    def _note(self, scope: Scope, visit: _Visit) -> None:
        route = scope.get("route")
        path = getattr(route, "path", "other")
        seconds = since(visit.start)
        self._metrics.requests.labels(path, str(visit.status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        facts = {"id": visit.id, "method": visit.method, "path": scope["path"]}
        log("request", status=visit.status, seconds=seconds, **facts, **scope.get("attar", {}))


class _Visit:
    """One request: its id, when it began, and the status that was sent."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.start = time.perf_counter()
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        self.id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        self.method: str = scope["method"]
        self.status = 499  # until something is sent: the client went away
        self._send = send
        self._begun = False
        self._close = False

    async def send(self, message: Scope) -> None:
        if message["type"] == "http.response.start":
            self._begun, self.status = True, message["status"]
            more = [(b"x-request-id", self.id.encode())]
            if self._close:
                more.append((b"connection", b"close"))
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await self._send(message)

    def failed(self, error: ApiError) -> None:
        """Close the connection where the rest of a body would still come."""
        self._close = error.status in (401, 403, 408, 413, 503)

    async def answer(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Send an error, unless an answer is under way: that one just ends."""
        if not self._begun:
            await error.response()(scope, receive, self.send)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Hand the body on as one message; what follows is the client's going away."""
    given = False

    async def again() -> Scope:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
