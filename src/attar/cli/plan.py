"""attar plan: what a recipe would do, and what of it is already made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from attar.cli.message import tell
from attar.cli.options import HOME, Device, Home, RecipeFile, Set
from attar.core.keys import UNKNOWN

if TYPE_CHECKING:
    from rich.table import Table

    from attar.core.step import What
    from attar.engine.plan import Plan, Stage


def plan(recipe: RecipeFile, sets: Set = None, home: Home = HOME, device: Device = "cpu") -> None:
    """Show what a recipe would do, and everything that is wrong with it; reads no weights."""
    from rich.console import Console

    from attar.core.recipe_file import read
    from attar.engine.plan import make_plan
    from attar.engine.store import Store

    store = Store(Path(home))
    made = make_plan(read(recipe, sets or ()), store, peek=True, device=device)
    made.secret = os.environ.get
    made.check_secrets()
    for warning in [*made.warnings, *made.inputs.check_data()]:
        tell(warning, mark="warning")
    console = Console()
    console.print(_table(made))
    todo = [stage for stage in made.stages if stage.step is not None and not stage.cached]
    console.print(
        f"{made.recipe.name}: {len(todo)} of {len(made.recipe.steps)} stages to be made under "
        f"{store.home}, in {made.precision} on {made.device}",
        highlight=False,
        soft_wrap=True,
    )
    if any(stage.key == UNKNOWN for stage in made.stages):
        console.print("? a file has not been hashed yet; `attar run` does that", style="dim")


def _table(made: Plan) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    for title in ("", "stage", "technique", "key", "reads", "weights"):
        table.add_column(title, overflow="fold")
    table.add_column("state", no_wrap=True)
    for number, stage in enumerate(made.stages):
        table.add_row(
            str(number) if number else "",
            stage.id,
            made.recipe.model.path if stage.step is None else stage.kind,
            stage.key[:12],
            _reads(stage),
            _traits(stage),
            _state(stage),
        )
    return table


def _reads(stage: Stage) -> str:
    if stage.step is None:
        return ""
    kinds: tuple[What, ...] = ("data", "model", "file")
    names = [pair for what in kinds for pair in stage.step.references(what)]
    return ", ".join(f"{setting}: {name}" for setting, name in names) or "–"


def _traits(stage: Stage) -> str:
    """What the step asks of the weights in its scope, and what it leaves them."""
    if stage.step is None:
        return ""
    if stage.makes_data:
        return "makes data"
    before = "/".join(sorted(stage.step.needs)) or "any"
    after = "/".join(sorted((stage.step.needs - stage.step.removes) | stage.step.adds)) or "any"
    return before if before == after else f"{before} → {after}"


def _state(stage: Stage) -> str:
    if stage.step is None:
        return "as it is" if not stage.cached else "cached"
    return "cached" if stage.cached else "to be made"
