"""Peak memory of this process while a step runs."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

_EVERY = 0.05  # seconds


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
