"""Micro-batching of encoders: texts that come within a few milliseconds run together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attar.errors import AttarError
from attar.runtimes._lengths import groups
from attar.runtimes.runtime import Floats, Ids
from attar.serve.batching import QueueFull, Stopped

Forward = Callable[[Ids, Ids], Floats]  # ids and mask [rows, length] -> [rows, width]
_PADDED = 8192  # tokens of one batch, padding included
_SEEN = 4  # batches' worth of waiting texts among which those of like length are looked for


@dataclass(eq=False)
class _Text:
    ids: Sequence[int]
    answer: Future[Floats] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Bounds:
    """Texts that run together, texts that may wait, and seconds to wait for more."""

    rows: int
    queue: int
    window: float


class Gatherer:
    """Runs texts of like length together, in a thread of its own."""

    def __init__(
        self, forward: Forward, bounds: Bounds, pad: int, free: Callable[[], None] = lambda: None
    ) -> None:
        self._forward, self._pad, self._free = forward, pad, free
        self._most, self._queue, self._window = bounds.rows, bounds.queue, bounds.window
        self._waits: deque[_Text] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self.running = 0
        self._thread = threading.Thread(target=self._run, name="attar-encoder", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Texts that wait."""
        return len(self._waits)

    def submit(self, texts: Sequence[Sequence[int]]) -> list[Future[Floats]]:
        """Take texts as ids; a row of the answer for each. All of them, or QueueFull."""
        new = [_Text(ids) for ids in texts]
        with self._changed:
            if self._closed:
                raise Stopped("the model is being unloaded")
            if len(self._waits) + len(new) > self._queue:  # who left takes no place in it
                self._waits = deque(text for text in self._waits if not text.answer.cancelled())
            if self._waits and len(self._waits) + len(new) > self._queue:
                raise QueueFull(f"{len(self._waits)} texts wait already")
            self._waits.extend(new)
            self._changed.notify()
        return [text.answer for text in new]

    def close(self) -> None:
        """Let nothing more in, and end what waits with Stopped."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._free()

    def _run(self) -> None:
        while texts := self._take():
            self.running = len(texts)
            self._answer(texts)
            self.running = 0
        for text in self._waits:
            _settle(text.answer, Stopped("the server ends"))

    def _take(self) -> list[_Text]:
        """The text that waited longest, and those that run with it; none once it is closed."""
        with self._changed:
            while not self._closed:
                if not self._waits:
                    self._changed.wait()
                    continue
                self._gather(self._waits[0].since + self._window)
                waits = [text for text in self._waits if not text.answer.cancelled()]
                batch = _with_first(waits[: _SEEN * self._most], self._most)
                taken = set(map(id, batch))
                self._waits = deque(text for text in waits if id(text) not in taken)
                if batch:
                    return batch
            return []

    def _gather(self, until: float) -> None:
        while len(self._waits) < self._most and not self._closed:
            left = until - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _answer(self, texts: list[_Text]) -> None:
        rows: Any
        try:
            rows = self._run_together(texts)
        except Exception as error:  # whatever a model raises ends these answers, not the server
            if len(texts) > 1:  # and of these only the one that it fails on
                for text in texts:
                    self._answer([text])
                return
            rows = [error]
        for text, row in zip(texts, rows, strict=True):
            _settle(text.answer, _sound(row))

    def _run_together(self, texts: list[_Text]) -> Floats:
        longest = max(len(text.ids) for text in texts)
        ids = np.full((len(texts), longest), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = text.ids
            mask[row, : len(text.ids)] = 1
        rows = self._forward(ids, mask)
        if len(rows) != len(texts):
            raise ValueError(f"{len(rows)} rows came of {len(texts)} texts")
        return rows


def _with_first(waits: Sequence[_Text], most: int) -> list[_Text]:
    """The first text and those that it runs with when all are parted with the least work."""
    parts = groups([len(text.ids) for text in waits], most, _PADDED)
    return next(([waits[place] for place in part] for part in parts if 0 in part), [])


def _sound(row: Any) -> Any:
    """The row, or what is wrong with it."""
    if isinstance(row, Exception) or np.isfinite(row).all():
        return row
    return AttarError("the model gives NaN or infinite numbers for this text")


def _settle(answer: Future[Floats], value: Any) -> None:
    """Give a result or an error to whoever still waits for it."""
    if not answer.set_running_or_notify_cancel():
        return
    if isinstance(value, Exception):
        answer.set_exception(value)
    else:
        answer.set_result(value)
