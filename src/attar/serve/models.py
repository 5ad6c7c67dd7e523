"""The models of a server: loaded on demand within a budget of memory, the longest idle unloaded."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from attar.errors import AttarError, UserError
from attar.serve.errors import ApiError, busy
from attar.serve.log import log, since
from attar.serve.opening import Loaded, locate, open_model
from attar.serve.settings import Settings, Source

Open = Callable[[Source, Settings], Loaded]
Size = Callable[[Source], int]


@dataclass(eq=False)
class _Entry:
    source: Source
    size: int  # bytes: expected, and once it was loaded real
    loaded: Loaded | None = None
    loading: asyncio.Task[Loaded] | None = None
    users: int = 0
    used: float = 0.0


class Pool:
    """Models by name. All of its methods run on the server's one loop."""

    def __init__(self, settings: Settings, open_: Open = open_model, size: Size | None = None):
        self._settings, self._open = settings, open_
        measured = size or (lambda source: locate(source).size)
        self._budget = settings.memory
        self._entries: dict[str, _Entry] = {}
        for source in settings.models:
            if source.name in self._entries:
                raise UserError(f"two models are called {source.name!r}. Name them: NAME=MODEL")
            entry = _Entry(source, measured(source))
            if self._budget is not None and entry.size > self._budget:
                raise UserError(
                    f"{source.name} takes about {entry.size:,} bytes, more than the "
                    f"{self._budget:,} that models may take. Raise --memory, or serve less"
                )
            self._entries[source.name] = entry
        self._room = asyncio.Condition()
        self.ready = False

    @property
    def sources(self) -> list[Source]:
        """What is served."""
        return [entry.source for entry in self._entries.values()]

    def loaded(self) -> dict[str, Loaded]:
        """The models in memory."""
        return {name: e.loaded for name, e in self._entries.items() if e.loaded is not None}

    async def start(self) -> None:
        """Load the first model, and others as far as they fit. Raises what loading raises."""
        for number, entry in enumerate(self._entries.values()):
            if number == 0 or self._fits(entry):
                await self._load_once(entry)
        self.ready = True

    async def close(self) -> None:
        """Unload everything."""
        self.ready = False
        for entry in self._entries.values():
            if entry.loading is not None:
                entry.loading.cancel()
                await asyncio.gather(entry.loading, return_exceptions=True)
            await self._unload(entry)

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[Loaded]:
        """A model that stays loaded meanwhile; the first one where no name is given."""
        entry = self._entry(name)
        loaded = entry.loaded
        if loaded is None:
            seconds = self._settings.limits.queue_seconds
            try:
                async with asyncio.timeout(seconds):
                    loaded = await self._load_once(entry)
            except TimeoutError:
                raise busy(f"{entry.source.name} is not loaded yet", "model_loading") from None
            except AttarError as error:
                raise busy(f"{entry.source.name} does not load", "model_failed") from error
        entry.users += 1
        entry.used = time.monotonic()
        try:
            yield loaded
        finally:
            entry.users -= 1
            async with self._room:
                self._room.notify_all()

    def _entry(self, name: str | None) -> _Entry:
        if name is None:
            return next(iter(self._entries.values()))
        entry = self._entries.get(name)
        if entry is None:
            raise ApiError(
                404,
                f"there is no model {name!r}; there are {', '.join(self._entries)}",
                "model_not_found",
                "model",
            )
        return entry

    async def _load_once(self, entry: _Entry) -> Loaded:
        """Load a model however many ask for it; it goes on loading when they go away."""
        while entry.loaded is None:
            if entry.loading is None:
                entry.loading = asyncio.create_task(self._load(entry))
                entry.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
            loaded = await asyncio.shield(entry.loading)
            if entry.loaded is None:  # unloaded in the same breath
                continue
            return loaded
        return entry.loaded

    async def _load(self, entry: _Entry) -> Loaded:
        start = time.perf_counter()
        try:
            await self._make_room(entry)
            loaded = await asyncio.to_thread(self._open, entry.source, self._settings)
        except Exception as error:
            log("model failed", logging.ERROR, error, model=entry.source.name)
            raise
        finally:
            entry.loading = None
            _take_signals_back()
        entry.loaded, entry.size, entry.used = loaded, loaded.size, time.monotonic()
        log(
            "model loaded",
            model=entry.source.name,
            engine=loaded.engine,
            bytes=loaded.size,
            seconds=since(start),
        )
        return loaded

    def _taken(self) -> int:
        """Bytes of what is in memory or on its way there."""
        return sum(
            entry.size
            for entry in self._entries.values()
            if entry.loaded is not None or entry.loading is not None
        )

    def _fits(self, entry: _Entry) -> bool:
        return self._budget is None or self._taken() + entry.size <= self._budget

    async def _make_room(self, entry: _Entry) -> None:
        """Unload the longest idle ones until this one, which counts already, fits."""
        while self._budget is not None and self._taken() > self._budget:
            idle = [
                other
                for other in self._entries.values()
                if other is not entry and other.loaded is not None and other.users == 0
            ]
            if idle:
                await self._unload(min(idle, key=lambda other: other.used))
                await asyncio.to_thread(gc.collect)  # modules hold one another in circles
                continue
            if self._taken() == entry.size:  # larger than was expected, and alone
                return
            async with self._room:  # whoever asked goes away when that takes too long
                await self._room.wait()

    async def _unload(self, entry: _Entry) -> None:
        loaded, entry.loaded = entry.loaded, None
        if loaded is None:
            return
        await asyncio.to_thread(loaded.close)
        log("model unloaded", model=entry.source.name)


def _take_signals_back() -> None:
    """Handle Ctrl-C and SIGTERM again: llama.cpp takes them for itself when it starts."""
    if threading.current_thread() is not threading.main_thread():
        return
    for kind in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(kind)
        if handler is not None:
            signal.signal(kind, handler)
