"""One writer of a place at a time, in this process and in others."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from attar.engine.store import ELSEWHERE, readable


@contextmanager
def alone(lock: Path, say: Callable[[str], None], instead: str = ELSEWHERE) -> Generator[None]:
    """Let one at a time in; the system lets go of the lock of one that dies.

    The file goes when whoever is in leaves; a killed one leaves it to the next.
    """
    while True:
        with readable(f"{lock.parent} cannot be written", lock.parent, instead):
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("a")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another export goes there; waiting for that")
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is(file, lock):  # who was in before has removed it
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
