"""One file an engine: open a model's folder, run it, and read its codes back.

Engines speak token ids; making tokens of text is the caller's.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from attar.core.rooms import Room
from attar.runtimes.runtime import Engine

ENGINES = Room("runtimes", "engine", shared=("runtime",))


def find(name: str) -> Engine:
    """The engine of this name. Raises UserError, with the nearest name, when there is none."""
    return cast("Engine", ENGINES.find(name))


def engine_of(folder: Path) -> Engine | None:
    """The engine whose files lie in this folder, one that is installed before others.

    PyTorch last, for it runs none of their files; None where no engine knows the folder.
    """
    found = [engine for name in ENGINES.names() if (engine := find(name)).holds(folder)]
    found.sort(key=lambda engine: (engine.name == "torch", not engine.installed()))
    return found[0] if found else None
