"""A technique: what it does, what it asks of the weights, and its settings."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from attar.core.step import Step


def show_technique(kind: str) -> None:
    """Print a technique's documentation and settings."""
    from rich.console import Console
    from rich.text import Text

    from attar.core.registry import find

    technique = find(kind)
    console = Console()
    console.print(Text.assemble((kind, "bold"), f"  version {technique.version}"))
    for text in _documentation(technique):
        console.print(Text(text))
    console.print()
    for line in facts_of(technique):
        console.print(Text(line))
    console.print()
    _settings(technique, console)


def facts_of(technique: type[Step]) -> list[str]:
    """What it needs, leaves, works for and promises, a line each."""
    from attar.core.step import DataStep

    if issubclass(technique, DataStep):
        return ["makes data: a dataset called by the step's id", *_read(technique)]
    needs = ", ".join(sorted(technique.needs)) or "any"
    needs += "".join(f", not {trait}" for trait in sorted(technique.forbids))
    left = (technique.needs - technique.removes) | technique.adds
    facts = [
        f"weights: needs {needs}; leaves {', '.join(sorted(left)) or 'any'}",
        f"tasks: {', '.join(technique.tasks)}",
    ]
    if technique.promises:
        facts.append(f"promises, and the guard checks: {', '.join(sorted(technique.promises))}")
    facts += _read(technique)
    if technique.whole:
        facts.append("trains end to end: the whole model must fit in memory")
    return facts


def _read(technique: type[Step]) -> list[str]:
    """The settings that name what it reads, a line for each kind of thing."""
    facts: list[str] = []
    for what, word in (("data", "data"), ("model", "models"), ("file", "files")):
        reads = technique.reading(what)  # type: ignore[arg-type]
        if reads:
            facts.append(f"reads {word}: {', '.join(reads)}")
    return facts


def _documentation(technique: type[Step]) -> list[str]:
    """The file's docstring and the class's own."""
    texts = [sys.modules[technique.__module__].__doc__, technique.__dict__.get("__doc__")]
    return [inspect.cleandoc(text) for text in texts if text]


def _settings(technique: type[Step], console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from attar.cli.settings import settings_of

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    table.add_column("setting", no_wrap=True)
    for title in ("takes", "default", "what it does"):
        table.add_column(title, overflow="fold")
    for row in settings_of(technique):
        cells = (row.name, row.type, row.default, row.description)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
