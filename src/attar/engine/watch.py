"""Peak memory of this process while a step runs."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType

import psutil

from attar.errors import ModelError, OutOfMemory

_EVERY = 0.05  # seconds


_NO_MEMORY = ("allocate memory", "out of memory")  # how PyTorch says it


@contextmanager
def watched(what: str, advice: str) -> Generator[PeakMemory]:
    """Watch the memory of some work; where it runs out, say in what, at which peak, what to do."""
    with PeakMemory() as memory:
        try:
            yield memory
        except (MemoryError, RuntimeError, ModelError) as error:
            if not isinstance(error, MemoryError) and not any(s in str(error) for s in _NO_MEMORY):
                raise
            raise OutOfMemory(
                f"{what} ran out of memory at {memory.peak / 1e6:,.0f} MB. {advice}, or "
                "free some memory; the stages before are kept, and the same command goes on there"
            ) from error


class PeakMemory:
    """Samples resident memory in a thread; `peak` is in bytes."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = 0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self._process.memory_info().rss)
            if self._done.wait(_EVERY):
                return
