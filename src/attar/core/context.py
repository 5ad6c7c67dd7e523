"""What a step is given besides the model: data, seed, teacher, scratch folder, progress."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from attar.core.step import Task


class Bar(Protocol):
    """One piece of long work under way."""

    def advance(self, amount: float = 1, text: str | None = None) -> None:
        """Say that `amount` more is done, with an optional short text to show."""
        ...


class Progress(Protocol):
    """Where long work is shown."""

    def bar(self, label: str, total: float) -> AbstractContextManager[Bar]:
        """Show work of `total` units until the block ends."""
        ...

    def say(self, text: str) -> None:
        """Show one line."""
        ...


class Silent:
    """Progress that shows nothing."""

    @contextmanager
    def bar(self, label: str, total: float) -> Generator[Bar]:
        """Show nothing."""
        yield self

    def advance(self, amount: float = 1, text: str | None = None) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""


def _no_secret(name: str) -> str | None:
    return None


@dataclass
class Context:
    """What a step reads and where it reports. There are no globals.

    `data(name)` gives the named dataset; `model(name)` the model named `original`, a stage's
    id, or an artifact's path, ready for inference, and `model(name, task)` the same for a task
    that is not the recipe's own. `precision` is `bf16` or `float32`.
    `scratch` is a folder of this step's own that outlives a crash, None when not wanted.
    `memory` is how many bytes it may take, None for what is free. `device` is a torch device
    string. `trackers` are names that Accelerate knows; they write below the folder `logs`.
    `beside(name)` is a folder, shared by all runs, for what can be worked out again from the model
    of that name; None where nothing outlives the step. `secret(name)` is what the user's
    environment holds under a name: a key, which must be written nowhere.
    """

    task: Task
    data: Callable[[str], Any]
    model: Callable[..., Any]
    seed: int = 0
    device: str = "cpu"
    precision: str = "float32"
    scratch: Path | None = None
    memory: float | None = None
    beside: Callable[[str], Path] | None = None
    secret: Callable[[str], str | None] = _no_secret
    progress: Progress = field(default_factory=Silent)
    trackers: tuple[str, ...] = ()
    logs: Path | None = None
    notes: dict[str, Any] = field(default_factory=dict[str, Any])
    curves: dict[str, list[tuple[float, float]]] = field(
        default_factory=dict[str, list[tuple[float, float]]]
    )
    warnings: list[str] = field(default_factory=list[str])

    def note(self, name: str, value: Any) -> None:
        """Put a plain value into the report of this step."""
        self.notes[name] = value

    def point(self, curve: str, x: float, y: float) -> None:
        """Add a point to a curve of the report: a loss, a score by block."""
        self.curves.setdefault(curve, []).append((x, y))

    def warn(self, text: str) -> None:
        """Put a warning into the report and show it."""
        self.warnings.append(text)
        self.progress.say(f"warning: {text}")
