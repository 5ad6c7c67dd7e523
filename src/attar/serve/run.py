"""Running the server: the socket, the signals, and an end that lets requests finish."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from attar.errors import UserError
from attar.serve.app import create_app
from attar.serve.auth import check_host
from attar.serve.errors import ApiError
from attar.serve.limits import CROWDED, Gate
from attar.serve.locating import locate
from attar.serve.log import log, set_up
from attar.serve.memory import COUNTED
from attar.serve.models import Pool, check_names
from attar.serve.settings import Settings, Source

Prepare = Callable[[tuple[Source, ...]], tuple[Source, ...]]
_CUT = 2  # seconds that requests get to notice that they are cut off
_SPARE = 64  # connections beyond the bound, which are told that, and get to ask for its health
_IDLE = 30  # seconds that a connection may stay open without a request
_UNREAD = 300  # seconds until a connection whose reader takes nothing is dropped


def serve(settings: Settings, prepare: Prepare = lambda sources: sources) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises UserError before anything listens, AttarError after.

    `prepare` may put other places for models before they are opened, and take its time.
    """
    check_host(settings.host, settings.keys, settings.anyone)
    set_up()
    listening = bind(settings.host, settings.port)
    settings = _prepared(settings, prepare)
    errors: list[BaseException] = []

    def failed(error: BaseException) -> None:
        errors.append(error)
        server.should_exit = True

    app = create_app(settings, Pool(settings), failed)
    server = Server(config(app), app.state.service.gate, settings.limits.drain)
    host, port = listening.getsockname()[:2]
    names = [source.name for source in settings.models]
    log(
        "listening",
        url=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}",
        models=names,
        memory=settings.memory,
        counted=COUNTED,
    )
    try:
        server.run(sockets=[listening])
    except OSError as error:
        if error.errno != errno.EADDRINUSE:  # another bound the same port while neither listened
            raise
        raise _cannot(host, port, error) from None
    log("ended")
    if errors:
        raise errors[0]


def _prepared(settings: Settings, prepare: Prepare) -> Settings:
    """The models in the places to open them at."""
    check_names(settings.models)
    for source in settings.models:  # what is not there at all is told before anything is prepared
        if source.engine is None:
            locate(source)
    return settings.model_copy(update={"models": prepare(settings.models)})


def config(app: Any, idle: int = _IDLE) -> uvicorn.Config:
    """How uvicorn serves the application; the same whatever else is installed."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=app.state.service.settings.limits.connections,
        timeout_keep_alive=idle,
        timeout_graceful_shutdown=_CUT,
    )


class Connection(H11Protocol):
    """One connection; closed where no request, or not all of its head, comes in time.

    uvicorn itself waits for ever for the rest of what has begun, and then nobody else gets in. Of
    too many connections it would refuse all, those that are under way and those that ask for its
    health too: here it is those that came last, by the application.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        most, self.limit_concurrency = self.limit_concurrency, None
        beyond = 0 if most is None else len(self.connections) - most
        if beyond > _SPARE:
            self.transport.close()
            return
        if beyond > 0:
            self.app_state = {**self.app_state, CROWDED: True}
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._rest()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the shape of every other error."""
        said = ApiError(400, "this is no valid HTTP request", "invalid_http").text().encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=said),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def _watch(self) -> None:
        """A request that is there stops the clock; what comes of one does not set it back."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._rest()
        elif self._late is None:
            self._late = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError where it cannot."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _UNREAD)
        found.bind(address)
    except OSError as error:
        raise _cannot(host, port, error) from None
    return found


def _cannot(host: str, port: int, error: OSError) -> UserError:
    unknown = isinstance(error, socket.gaierror)
    do = "Name another --host" if unknown else "Name another --port, or end what listens there"
    return UserError(f"cannot listen on {host}:{port}: {error.strerror or error}. {do}")


class Server(uvicorn.Server):
    """Stops in two steps: at the first signal nothing new is let in, and what runs may finish.

    A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, gate: Gate, patience: float) -> None:
        super().__init__(config)
        self._gate, self._patience = gate, patience
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: Any = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._gate.draining or self._loop is None:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
            return
        self._gate.draining = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._draining = asyncio.ensure_future(self._wait())

    async def _wait(self) -> None:
        """Wait until nothing is under way, or patience ends."""
        log("draining", requests=self._gate.inside)
        try:
            async with asyncio.timeout(self._patience):
                while self._gate.inside and not self.should_exit:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            log("cut off", logging.WARNING, requests=self._gate.inside)
        self.should_exit = True
