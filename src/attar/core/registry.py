"""Finding techniques by kind: the kind is the path of the file under `techniques/`.

A hyphen in a kind is an underscore in the file's name.
"""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from attar.errors import UserError

if TYPE_CHECKING:
    from attar.core.step import Step

_ROOT = Path(__file__).parent.parent / "techniques"


@dataclass(frozen=True)
class Entry:
    """A technique's kind and the first line of its docstring."""

    kind: str
    summary: str


def kinds() -> list[str]:
    """Every kind there is, sorted."""
    return sorted(
        f"{path.parent.name}/{path.stem}".replace("_", "-")
        for path in _ROOT.glob("*/*.py")
        if not path.stem.startswith("_")
    )


def entries() -> list[Entry]:
    """Kinds with their summaries, read from the files and not imported."""
    found: list[Entry] = []
    for kind in kinds():
        tree = ast.parse((_ROOT / f"{file_of(kind)}.py").read_text("utf-8"))
        summary = (ast.get_docstring(tree) or "").partition("\n")[0]
        found.append(Entry(kind, summary))
    return found


@cache
def find(kind: str) -> type[Step]:
    """The class of a kind. Raises UserError, with the nearest kind, when there is none."""
    known = kinds()
    if kind not in known:
        hint = nearest(kind, known) or "."
        raise UserError(f"no technique is called {kind!r}{hint} `attar list` shows them all")
    module = importlib.import_module(f"attar.techniques.{file_of(kind).replace('/', '.')}")
    for value in vars(module).values():
        if isinstance(value, type) and getattr(value, "kind", None) == kind:
            return cast("type[Step]", value)
    raise RuntimeError(f"techniques/{file_of(kind)}.py defines no Step of kind {kind!r}")


def file_of(kind: str) -> str:
    """Where a kind is, under `techniques/` and without `.py`."""
    return kind.replace("-", "_")


def nearest(word: str, known: list[str]) -> str:
    """`; did you mean 'x'?` where something known is near, else nothing."""
    close = get_close_matches(word, known, n=3, cutoff=0.5)
    close.sort(key=lambda name: sorted(name) != sorted(word))  # swapped letters first
    if not close:
        tails = [name for name in known if name.rpartition("/")[2] == word.rpartition("/")[2]]
        close = tails[:1]
    return f"; did you mean {close[0]!r}?" if close else ""
