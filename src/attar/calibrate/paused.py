"""Batches on their way through a block, each halting where it is told to.

What a calibrated method does to a linear shall be seen by the linears after it, and no batch
shall go through a block twice. So every batch runs in a greenlet of its own, which halts at
the linears in question until the caller sends it on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet
from torch import Tensor


class Paused:
    """One batch's way through a block: `advance` to the next halt, or to the end."""

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self._way: Any = greenlet(run)
        self.output: Tensor | None = None

    def advance(self) -> tuple[str, Tensor] | None:
        """Go on to the next halt: its name and what arrived there; None at the end of the way."""
        arrived = self._way.switch()
        if not self._way.dead:
            return arrived
        self.output = arrived
        return None

    def give_up(self) -> None:
        """Leave the way wherever it is."""
        if self._way and not self._way.dead:
            self._way.throw()


def halt(name: str, inputs: Tensor) -> None:
    """Halt the batch that is running, until it is sent on."""
    here: Any = getcurrent()
    here.parent.switch((name, inputs))
