"""The table of `attar sensitivity`: what each part of a model costs, by what was tried on it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from attar.core.scope import ModuleFact, Scope
from attar.data.files import located
from attar.models.model import Model

By = Literal["role", "linear"]  # attention and MLP of a block, or each linear alone
_BY: tuple[By, ...] = ("role", "linear")


@dataclass(frozen=True)
class Part:
    """Modules that are changed together: those of one role in one block, or one linear.

    name: the role, or the linear's path within its block.
    """

    block: int
    name: str
    names: tuple[str, ...]
    weights: int


@dataclass(frozen=True)
class Table:
    """What was measured, as text by its label, of the parts that are in a step's scope."""

    parts: list[Part]
    columns: Mapping[str, Sequence[str]]

    def divergences(self, label: str) -> list[float]:
        """One number a part. Raises ValueError where there is none."""
        if label not in self.columns:
            raise ValueError(
                f"has no column {label!r}. Measure it too: `attar sensitivity` takes `--try` with "
                "a step as a recipe writes it"
            )
        found = [_number(text) for text in self.columns[label]]
        for part, value in zip(self.parts, found, strict=True):
            if not math.isfinite(value):
                raise ValueError(
                    f"tells no divergence of {label!r} for {part.name} of block {part.block}. "
                    "Measure it again"
                )
        return found

    def tried(self, kind: str, setting: str) -> dict[float, list[float]]:
        """The divergences of a technique by the values of a setting that it was tried with.

        Raises ValueError where there are none, or two for the same value.
        """
        found: dict[float, list[float]] = {}
        pattern = re.compile(rf"{re.escape(kind)} (.* )?{setting}=(?P<value>[\d.e-]+)( |$)")
        for label in self.columns:
            match = pattern.match(label)
            if match is None:
                continue
            value = float(match["value"])
            if value in found:
                raise ValueError(f"has two columns of {kind} with {setting}={value:g}. Keep one")
            found[value] = self.divergences(label)
        if not found:
            raise ValueError(
                f"has no column of {kind} with a {setting}. Measure some: `attar sensitivity "
                f"--try '{kind}: {{{setting}: ...}}'`, once for each value"
            )
        return found


def parts_of(model: Model, scope: Scope, by: By = "role") -> list[Part]:
    """The linears in scope, by block and role or one by one; those outside the blocks are out."""
    return parts_among(model.facts(), model.linears(scope), by)


def parts_among(
    modules: Sequence[ModuleFact], chosen: Collection[str], by: By = "role"
) -> list[Part]:
    """The same of a model that is not loaded: its modules, and the names of those in scope."""
    chosen = set(chosen)
    found: dict[tuple[int, str], list[ModuleFact]] = {}
    for fact in modules:
        if fact.linear and fact.name in chosen and fact.block is not None:
            path = fact.name.partition(f".{fact.block}.")[2]
            name = fact.role if by == "role" else path
            found.setdefault((fact.block, name), []).append(fact)
    return [
        Part(block, name, tuple(fact.name for fact in facts), sum(map(_weights, facts)))
        for (block, name), facts in found.items()
    ]


def label_of(kind: str, settings: Mapping[str, Any]) -> str:
    """What a technique with some settings is called in a table."""
    return " ".join([kind, *(f"{name}={value}" for name, value in settings.items())])


def to_table(parts: Sequence[Part], found: Mapping[str, Sequence[float]], by: By = "role") -> str:
    """Divergences by label as tab-separated text, a line for each part."""
    lines = ["\t".join(["block", by, "weights", *found])]
    for index, part in enumerate(parts):
        values = [f"{column[index]:.6g}" for column in found.values()]
        lines.append("\t".join([*_told(part), *values]))
    return "\n".join(lines) + "\n"


def read_table(path: str, modules: Sequence[ModuleFact], chosen: Collection[str]) -> Table:
    """What `attar sensitivity` wrote of this model: a line for each of its parts.

    Raises OSError where it cannot be read, ValueError where it is no such table, was measured on
    another model, or knows the chosen modules only together with others.
    """
    text = located(path).read_text("utf-8", errors="replace")
    header, *rows = [line.split("\t") for line in text.splitlines()] or [[]]
    by: By | None = next((each for each in _BY if header[:3] == ["block", each, "weights"]), None)
    if by is None or any(len(row) != len(header) for row in rows):
        raise ValueError("is no table that `attar sensitivity` wrote")
    every = parts_among(modules, Scope.linears().select(modules), by)
    if [row[:3] for row in rows] != [_told(part) for part in every]:
        raise ValueError("was measured on a model of other blocks or sizes than this one's")
    parts = parts_among(modules, chosen, by)
    for part in parts:
        if part not in every:
            raise ValueError(
                f"measures {part.name} of block {part.block} as a whole, and only some of its "
                "linears are in scope. Measure with `--by linear`"
            )
    mine = [row for row, part in zip(rows, every, strict=True) if part in parts]
    labels = list(enumerate(header))[3:]
    return Table(parts, {label: [row[at] for row in mine] for at, label in labels})


def unread(path: str, read: Callable[[], object]) -> Iterator[str]:
    """What to say where reading a table fails."""
    try:
        read()
    except OSError as error:
        yield f"sensitivity: {path} cannot be read: {error.strerror}"
    except ValueError as error:
        yield f"sensitivity: {path} {error}"


def _told(part: Part) -> list[str]:
    return [str(part.block), part.name, str(part.weights)]


def _weights(fact: ModuleFact) -> int:
    rows, width = fact.shape
    return rows * width


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
