"""Where several texts are written at once: a place for each, which knows what was read there."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Places:
    """Which of so many places are free, and the prompt that was last read in each."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))  # the longest unused first
        self._read: dict[int, list[int]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, ids: Sequence[int]) -> Iterator[tuple[int, bool]]:
        """A free place, and whether a prompt goes on with the one that was last read there.

        It is -1 where all are taken.
        """
        prompt, read = list(ids), True
        place, goes_on = self._take(prompt)
        try:
            yield place, goes_on
        except Exception:
            read = False
            raise
        finally:
            self._leave(place, prompt if read else None)

    def _take(self, prompt: list[int]) -> tuple[int, bool]:
        with self._lock:
            known = [place for place in self._free if self._begins(place, prompt)]
            if not self._free:
                return -1, False
            place = max(known, key=lambda each: len(self._read[each])) if known else self._free[0]
            self._free.remove(place)
            return place, bool(known)

    def _leave(self, place: int, prompt: list[int] | None) -> None:
        if place < 0:
            return
        with self._lock:
            self._free.append(place)
            if prompt is None:
                self._read.pop(place, None)
            else:
                self._read[place] = prompt

    def _begins(self, place: int, prompt: list[int]) -> bool:
        """Whether what was read there is how this prompt begins, and not all of it."""
        before = self._read.get(place)
        return before is not None and len(before) < len(prompt) and prompt[: len(before)] == before


class Readings:
    """Which prompts are read at once, of so many tokens together at most.

    llama.cpp parts what it reads together where a shorter prompt ends, and computes a part of one
    token by other sums than longer ones. So no two differ by one.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._now: list[int | None] = []
        self._changed = threading.Condition()
        self._next = threading.Lock()  # whoever waits keeps others from going before it for ever

    @contextmanager
    def one(self, length: int | None) -> Iterator[None]:
        """Wait until a prompt of this length may be read; None, of one not known, is read alone."""
        with self._next, self._changed:
            self._changed.wait_for(lambda: self.fits(length))
            self._now.append(length)
        try:
            yield
        finally:
            with self._changed:
                self._now.remove(length)
                self._changed.notify_all()

    def fits(self, length: int | None) -> bool:
        """Whether it may be read beside those that are being read."""
        known = [each for each in self._now if each is not None]
        if not self._now or length is None or len(known) < len(self._now):
            return not self._now
        return sum(known) + length <= self._room and all(abs(each - length) != 1 for each in known)
