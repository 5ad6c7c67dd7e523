"""Everything Attar raises on purpose: what is wrong, where, and what to do next.

The exit code of the command line is the class's `exit_code`: 2 for a user's mistake,
1 when the machine failed (disk, memory, network), 3 when the guard refused a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

KeyPath = tuple[str | int, ...]  # keys and indices that lead to a value in plain data


class AttarError(Exception):
    """Root of every error that Attar raises on purpose."""

    exit_code = 1


class UserError(AttarError):
    """Something in what the user gave must change; the message says what to do."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One mistake: what it is, what to do about it, and where it is.

    Where is a file and a line or, in plain data that no file holds, the `path` of keys.
    """

    message: str
    file: str | None = None
    line: int | None = None
    path: KeyPath = ()

    def __str__(self) -> str:
        if self.file is not None:
            where = self.file if self.line is None else f"{self.file}:{self.line}"
        else:
            where = dotted(self.path)
        return f"{where}: {self.message}" if where else self.message


def dotted(path: Sequence[str | int]) -> str:
    """A path of keys in one word: `steps[1].grid`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


class ProblemsError(UserError):
    """Several mistakes, all of them reported at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


class RecipeError(ProblemsError):
    """The recipe cannot be read or does not make sense."""


class PlanError(ProblemsError):
    """The steps of the recipe do not fit the model, its data, or one another."""


class ExportError(ProblemsError):
    """The artifact cannot be written to this target, or not without loss."""


class DataError(ProblemsError):
    """The data cannot be read, or does not hold what the task needs."""


class ModelError(UserError):
    """The model cannot be found, read, or trusted."""


class UnknownFamily(ModelError):
    """An architecture that Attar has no table entry for."""


class MissingPackage(UserError):
    """An optional package is needed; the message holds the exact command."""

    def __init__(self, purpose: str, command: str) -> None:
        super().__init__(f"{purpose} needs a package that is not installed. Run: {command}")
        self.purpose, self.command = purpose, command

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.purpose, self.command)


class Unreachable(AttarError):
    """Something on the network did not answer."""


class StoreError(AttarError):
    """The store cannot be read or written: disk full, not writable, damaged."""


class OutOfMemory(AttarError):
    """The work does not fit the memory that there is."""


class TrainingDiverged(AttarError):
    """The loss became NaN, infinite or many times what it was; the message tells what is kept."""


class GuardFailed(AttarError):
    """A stage is outside its bound: it is kept, marked, and never published as good."""

    exit_code = 3
