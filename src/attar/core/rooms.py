"""Rooms whose files are found by name: one engine a file, one target a file.

A hyphen in a name is an underscore in the file's name. Files that begin with an underscore, and
those that a room calls shared, hold none.
"""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.core.registry import Entry, nearest
from attar.errors import UserError

_ATTAR = Path(__file__).parent.parent


@dataclass(frozen=True)
class Room:
    """A folder right under `attar`, what one of its files holds, and which hold none."""

    folder: str
    noun: str
    shared: tuple[str, ...]

    def names(self) -> list[str]:
        """Every name there is, sorted."""
        stems = (path.stem for path in (_ATTAR / self.folder).glob("*.py"))
        return sorted(
            stem.replace("_", "-")
            for stem in stems
            if not stem.startswith("_") and stem not in self.shared
        )

    def entries(self) -> list[Entry]:
        """Names with the first line of their files' docstrings, read and not imported."""
        found: list[Entry] = []
        for name in self.names():
            path = _ATTAR / self.folder / f"{name.replace('-', '_')}.py"
            text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            found.append(Entry(name, text.partition("\n")[0]))
        return found

    def find(self, name: str) -> Any:
        """The one object of that name. Raises UserError, with the nearest, when there is none."""
        known = self.names()
        if name not in known:
            hint = nearest(name, known) or "."
            raise UserError(f"no {self.noun} is called {name!r}{hint} There are {', '.join(known)}")
        module = importlib.import_module(f"attar.{self.folder}.{name.replace('-', '_')}")
        for value in vars(module).values():
            if isinstance(value, type) and value.__dict__.get("name") == name:
                return value()
        raise RuntimeError(f"{self.folder}/{name.replace('-', '_')}.py defines no {name!r}")
