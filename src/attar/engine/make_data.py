"""Making data: run the step, keep its rows as an artifact of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

from attar.core.context import Progress
from attar.core.report import Figure
from attar.core.step import DataStep
from attar.data import Dataset
from attar.data.made import ROWS, write_rows
from attar.data.together import twins
from attar.engine.make import context, naming, publish
from attar.engine.plan import Plan, Stage
from attar.engine.store import Store, readable
from attar.engine.watch import watched
from attar.errors import DataError, Problem


def make_data(plan: Plan, stage: Stage, store: Store, progress: Progress) -> None:
    """Make a dataset that is not in the store yet, and publish it."""
    step, who = cast("DataStep", stage.step), f"step {stage.id!r} ({stage.kind})"
    ctx = context(plan, stage, store, progress)
    started = time.monotonic()
    with (
        watched(who, "Lower its `batch` or `length`") as memory,
        readable(f"{who} could not write to {store.home}", store.home),
        naming(stage),
    ):
        dataset: Dataset = step.make(ctx)
    if not dataset.examples:
        text = f"{who} kept no row at all. Loosen its filter, or give it other data"
        raise DataError([Problem(text)])
    rows = dataset.examples
    facts: dict[str, Any] = {
        "key": stage.key,
        "task": plan.inputs.task,
        "kind": stage.kind,
        "version": step.version,
        "settings": step.keyed_settings(),
        "parent": None,
        "seed": stage.seed,
        "rows": len(rows),
    }
    made = {
        "seconds": time.monotonic() - started,
        "peak_memory": memory.peak,
        "notes": {**ctx.notes, "rows": len(rows)},
        "curves": ctx.curves,
        "warnings": ctx.warnings,
    }
    publish(store, stage.key, lambda folder: write_rows(rows, folder / ROWS), facts, made)
    store.clear_scratch(stage.key)


def figures_of(notes: dict[str, Any]) -> dict[str, Figure]:
    """What the report's table tells of data: its rows, and the share of what was written."""
    figures = {"rows": Figure(value=notes["rows"])} if "rows" in notes else {}
    if notes.get("kept") is not None:
        figures["kept"] = Figure(value=100 * notes["kept"], unit="%")
    return figures


def leaks(plan: Plan, stage: Stage) -> Iterator[str]:
    """What to say where data holds rows that the models are judged on: a step may write them."""
    made = plan.inputs.dataset(stage.id)
    for held_out in plan.recipe.measures.datasets:
        if held_out not in plan.recipe.data:
            continue
        judged = plan.inputs.dataset(held_out)
        if count := len(twins(made, judged)):
            yield (
                f"{count} of {len(judged.examples)} rows of {held_out} are in {stage.id} too. "
                f"Scores on {held_out} look better than they are: take them out"
            )
