"""Attar presses a large language model into one that can be shipped.

    import attar

    run = attar.run("recipe.yaml")
    model = run.load()

Names come when they are first asked for, so that `import attar` is fast and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from pathlib import Path

    from attar.core.context import Context
    from attar.core.grid import Grid
    from attar.core.recipe import Recipe
    from attar.core.recipe_file import read
    from attar.core.registry import Entry
    from attar.core.report import Report
    from attar.core.scope import Scope
    from attar.core.step import Step
    from attar.engine.plan import Plan
    from attar.engine.run import Run, run
    from attar.errors import AttarError
    from attar.export.export import export
    from attar.models.model import Model
    from attar.models.save import save

__version__ = "0.1.0"
__all__ = [
    "AttarError",
    "Context",
    "Grid",
    "Model",
    "Recipe",
    "Report",
    "Run",
    "Scope",
    "Step",
    "__version__",
    "export",
    "list_techniques",
    "load",
    "plan",
    "read",
    "run",
    "save",
]

_FROM = {
    "AttarError": "attar.errors",
    "Context": "attar.core.context",
    "Grid": "attar.core.grid",
    "Model": "attar.models.model",
    "Recipe": "attar.core.recipe",
    "Report": "attar.core.report",
    "Run": "attar.engine.run",
    "Scope": "attar.core.scope",
    "Step": "attar.core.step",
    "read": "attar.core.recipe_file",
    "run": "attar.engine.run",
    "save": "attar.models.save",
}


def __getattr__(name: str) -> Any:
    if name == "export":  # the room of that name, which can be called
        return importlib.import_module("attar.export")
    if name not in _FROM:
        raise AttributeError(f"module 'attar' has no attribute {name!r}")
    value = getattr(importlib.import_module(_FROM[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(model: str | PathLike[str], task: Any = None) -> Model:
    """Load a model with its tokenizer, in evaluation mode.

    `model` is an artifact's folder, a run's folder or the `model` in it, any model's folder, a
    GGUF file, `package:NAME`, or a hub name; `task` is needed where its config does not say.
    """
    import os
    from pathlib import Path

    from attar.core.recipe import ModelSource
    from attar.models.load import load as load_model

    path = Path(os.fspath(model)).expanduser()
    if (path / "report.json").is_file() and (path / "model" / "config.json").is_file():
        path = path / "model"
    return load_model(ModelSource(path=str(path) if path.exists() else os.fspath(model)), task)


def plan(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    home: str | Path = ".attar",
    device: str = "cpu",
) -> Plan:
    """What a recipe would do, stage by stage; no weights are read, and refusals are raised."""
    from pathlib import Path

    from attar.engine.plan import make_plan
    from attar.engine.run import as_recipe
    from attar.engine.store import Store

    return make_plan(as_recipe(recipe), Store(Path(home)), peek=True, device=device)


def list_techniques() -> list[Entry]:
    """The kinds of steps that there are, each with what it does."""
    from attar.core.registry import entries

    return entries()
