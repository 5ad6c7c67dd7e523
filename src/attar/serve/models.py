"""The models of a server: loaded on demand within a budget of memory, the longest idle unloaded."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from attar.errors import UserError
from attar.serve.errors import ApiError, busy
from attar.serve.locating import expected, task_at
from attar.serve.log import log, since
from attar.serve.opening import Loaded, open_model
from attar.serve.settings import Settings, Source

Open = Callable[[Source, Settings], Loaded]
Size = Callable[[Source], int]


_REST = 30.0  # seconds


@dataclass(eq=False)
class _Entry:
    source: Source
    size: int  # bytes: expected, and once it was loaded real
    task: str | None = None  # as far as its files tell before it is loaded
    loaded: Loaded | None = None
    loading: asyncio.Task[Loaded] | None = None
    users: int = 0  # those who wait for it, too
    used: float = 0.0
    rests: float = 0.0  # until when it is not tried again, for it did not load
    held: int = 0  # bytes taken from the budget: from before it loads until after it is unloaded


def check_names(sources: Sequence[Source]) -> None:
    """Raise UserError where two models have one name."""
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two models are called {name!r}. Name them: NAME=MODEL")


class Pool:
    """Models by name. All of its methods run on the server's one loop."""

    def __init__(self, settings: Settings, open_: Open = open_model, size: Size | None = None):
        self._settings, self._open = settings, open_
        measured = size or (lambda source: expected(source, settings).total)
        self._budget = settings.memory
        self._entries: dict[str, _Entry] = {}
        check_names(settings.models)
        for source in settings.models:
            task = task_at(source) if size is None else source.task
            entry = _Entry(source, measured(source), task)
            if self._budget is not None and entry.size > self._budget:
                raise UserError(
                    f"{source.name} takes about {entry.size:,} bytes, more than the "
                    f"{self._budget:,} that models may take. Raise --memory, lower --limit "
                    "context, or serve less"
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

    def task_of(self, name: str) -> str | None:
        """What a model is for; None where that is not known before it is loaded."""
        entry = self._entry(name)
        return entry.loaded.task if entry.loaded else entry.task

    async def start(self) -> None:
        """Load the first model, and others as far as they fit. Raises what loading raises."""
        for number, entry in enumerate(self._entries.values()):
            if number == 0 or self._fits(entry):
                async with self._kept(entry):
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
        async with self._kept(entry):
            loaded = entry.loaded or await self._in_time(entry)
            entry.used = time.monotonic()
            yield loaded

    async def _in_time(self, entry: _Entry) -> Loaded:
        if time.monotonic() < entry.rests:  # others were unloaded for it, for nothing
            raise busy(f"{entry.source.name} does not load", "model_failed")
        try:
            async with asyncio.timeout(self._settings.limits.queue_seconds) as clock:
                return await self._load_once(entry)
        except Exception as error:  # whatever an engine raises
            if clock.expired():
                raise busy(f"{entry.source.name} is not loaded yet", "model_loading") from None
            raise busy(f"{entry.source.name} does not load", "model_failed") from error

    @asynccontextmanager
    async def _kept(self, entry: _Entry) -> AsyncIterator[None]:
        """Nobody unloads it meanwhile, not even between its loading and its first use."""
        entry.users += 1
        try:
            yield
        finally:
            entry.users -= 1
            await self._tell()

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
        if entry.loaded is not None:
            return entry.loaded
        if entry.loading is None:
            entry.loading = asyncio.create_task(self._load(entry))
            entry.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(entry.loading)

    async def _load(self, entry: _Entry) -> Loaded:
        start = time.perf_counter()
        try:
            await self._make_room(entry)
            loaded = await self._opened(entry)
        except Exception as error:
            log("model failed", logging.ERROR, error, model=entry.source.name)
            entry.rests = time.monotonic() + _REST
            raise
        finally:
            entry.loading = None
            _take_signals_back()
        entry.loaded, entry.used = loaded, time.monotonic()
        entry.size = entry.held = loaded.held
        log(
            "model loaded",
            model=entry.source.name,
            engine=loaded.engine,
            weights=loaded.size,
            cache=loaded.cache,
            context=loaded.context,
            seconds=since(start),
        )
        return loaded

    async def _opened(self, entry: _Entry) -> Loaded:
        entry.held = entry.size
        try:
            return await asyncio.to_thread(self._open, entry.source, self._settings)
        except BaseException:
            entry.held = 0
            await self._tell()
            raise

    def _fits(self, entry: _Entry) -> bool:
        """Whether there is room for it; always where it is alone, however large it proved."""
        taken = sum(other.held for other in self._entries.values())
        return self._budget is None or not taken or taken + entry.size <= self._budget

    def _idle(self) -> list[_Entry]:
        return [e for e in self._entries.values() if e.loaded is not None and e.users == 0]

    async def _make_room(self, entry: _Entry) -> None:
        """Unload the longest idle ones until this one fits.

        What waits here takes nothing from the budget, or two that wait would wait for each other.
        """

        def possible() -> bool:
            return not entry.held and (self._fits(entry) or bool(self._idle()))

        while True:
            async with self._room:  # whoever asked goes away when that takes too long
                await self._room.wait_for(possible)
            if self._fits(entry):
                return
            await self._evict(min(self._idle(), key=lambda other: other.used))

    async def _evict(self, entry: _Entry) -> None:
        try:
            await self._unload(entry)
            await asyncio.to_thread(gc.collect)  # modules hold one another in circles
        finally:
            entry.held = 0
            await self._tell()

    async def _tell(self) -> None:
        """Let those who wait for room look again."""
        async with self._room:
            self._room.notify_all()

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
