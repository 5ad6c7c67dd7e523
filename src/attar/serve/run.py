"""Running the server: the socket, the signals, and an end that lets requests finish."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn

from attar.errors import UserError
from attar.serve.app import create_app
from attar.serve.auth import check_host
from attar.serve.limits import Gate
from attar.serve.log import log, set_up
from attar.serve.models import Pool
from attar.serve.settings import Settings

_CUT = 2  # seconds that requests get to notice that they are cut off


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises UserError before anything listens, AttarError after."""
    check_host(settings.host, settings.keys, settings.anyone)
    set_up()
    listening = bind(settings.host, settings.port)
    errors: list[BaseException] = []

    def failed(error: BaseException) -> None:
        errors.append(error)
        server.should_exit = True

    app = create_app(settings, Pool(settings), failed)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_CUT,
    )
    server = Server(config, app.state.service.gate, settings.limits.drain)
    host, port = listening.getsockname()[:2]
    names = [source.name for source in settings.models]
    log("listening", url=f"http://{host}:{port}", models=names)
    server.run(sockets=[listening])
    log("ended")
    if errors:
        raise errors[0]


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError where it cannot."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Name another --port, or "
            "end what listens there"
        ) from None
    return found


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
