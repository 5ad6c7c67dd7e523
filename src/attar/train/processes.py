"""The processes that share a run under `accelerate launch`: the first one leads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from attar.errors import AttarError

T = TypeVar("T")
# What the first process does alone may take hours, and the others wait for it. None waits for a
# dead one: the connection breaks, and the launcher ends them all.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """Which of how many this process is, and the device that it computes on."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def main(self) -> bool:
        """Whether this is the first process, which writes and speaks."""
        return self.rank == 0

    def lead(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first process; the others wait for it and do nothing.

        What it raises there is raised on all of them.
        """
        if self.count == 1:
            return work()
        told: list[Any] = [None, None]  # what came of it, or what was raised
        raised: Exception | None = None
        if self.main:
            try:
                told[0] = work()
            except Exception as error:
                raised, told[1] = error, _plain(error)
        broadcast_object_list(told)
        if told[1] is not None:
            raise raised or told[1]
        return told[0]

    def each(self, work: Callable[[], T]) -> T:
        """What `work` gives on this process, the first one ahead: the others find what it kept."""
        done: list[T] = []
        self.lead(lambda: done.append(work()))
        return done[0] if done else work()


def join(device: str) -> Processes:
    """This process among those that `accelerate launch` started; alone where it started none.

    Of several, each computes on a GPU of its own if `device` is one.
    """
    before = bool(PartialState._shared_state)
    state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
    if state.num_processes == 1:
        if not before:
            PartialState._reset_state()  # a script of the user's own may want another device
        return Processes(device=device)
    own = device if device == "cpu" else str(state.device)
    return Processes(state.process_index, state.num_processes, own)


def _plain(error: Exception) -> Exception:
    """An error that goes to another process: Attar's own do, and no one else's surely."""
    if isinstance(error, AttarError):
        return error
    return AttarError(f"the first process failed: {type(error).__name__}: {error}")
