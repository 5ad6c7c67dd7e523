"""Running a recipe: make what is missing, measure it, judge it, and say what it cost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.core.context import Progress, Silent
from attar.core.recipe import Recipe
from attar.core.recipe_file import build, read
from attar.core.report import Report, StageReport
from attar.engine.make import make, needs_copy, path_of
from attar.engine.measuring import Measuring
from attar.engine.plan import Plan, Stage, make_plan
from attar.engine.store import Store, readable
from attar.engine.watch import watched
from attar.errors import GuardFailed
from attar.measure.machine import environment
from attar.models import Model, load
from attar.models.source import Files

HOME = ".attar"


@dataclass(frozen=True)
class Run:
    """A finished run: its report, its folder, and the pressed model's folder."""

    report: Report
    folder: Path
    path: Path

    def load(self) -> Model:
        """The pressed model with its tokenizer."""
        return load(Files(self.path))


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    home: str | Path = HOME,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Run:
    """Run a recipe, given as a Recipe, plain data, or the path of a YAML file.

    What the store under `home` already holds is not made again, so a run that was killed goes
    on where it was. Raises GuardFailed, with the report written, when a stage is outside its
    bound and may not dip; errors of `attar.errors` for everything else.
    """
    recipe = as_recipe(recipe)
    progress = progress or Silent()
    store = Store(Path(home))
    store.prepare()
    plan = make_plan(recipe, store, device=device)
    warnings = plan.inputs.check_data()
    folder = store.run_folder(recipe.name)
    store.write(folder / "lock.yaml", recipe.to_yaml())
    report = Report(
        name=recipe.name,
        task=plan.inputs.task,
        recipe=recipe.plain(),
        environment={**environment(), "precision": plan.precision},
        stages=[],
        warnings=[*warnings, *plan.warnings],
    )
    for warning in report.warnings:
        progress.say(f"warning: {warning}")
    _stages(plan, store, progress, report, folder)
    report.finished = True
    _write(report, folder, store)
    last = path_of(plan, plan.stages[-1], store)
    with readable(f"{folder / 'model'} could not be written", store.home):
        _point(folder / "model", last)
    return Run(report, folder, last)


def as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    """A Recipe from any way of giving one."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str | Path):
        return read(Path(recipe))
    return build(recipe)


def _stages(plan: Plan, store: Store, progress: Progress, report: Report, folder: Path) -> None:
    measuring = Measuring(plan, store, progress)
    for number, stage in enumerate(plan.stages):
        progress.say(f"[{number + 1}/{len(plan.stages)}] {stage.id} ({stage.kind})")
        there = store.has(stage.key) or (stage.step is None and not needs_copy(plan))
        if store.has(stage.key):
            store.verify(stage.key)
        elif not there:
            make(plan, stage, store, progress)
        row = _row(plan, stage, store, there)
        with watched(f"measuring {stage.id!r}", "Lower measures.batch or measures.length"):
            measuring.measure(stage, row)
        report.stages.append(row)
        report.samples = measuring.samples()
        _write(report, folder, store)
        if row.verdict.status == "outside":
            raise GuardFailed(
                f"stage {stage.id!r} is outside its bound: {'; '.join(row.verdict.reasons)}. It "
                f"is kept at {row.path} and marked so; the report is in {folder}. Change the "
                f"step, widen `guard`, or list {stage.id!r} under guard.may_dip if a later step "
                "heals it"
            )


def _row(plan: Plan, stage: Stage, store: Store, cached: bool) -> StageReport:
    made: dict[str, Any] = store.report_of(stage.key) if store.has(stage.key) else {}
    parent = next((other.id for other in plan.stages if other.key == stage.parent), None)
    return StageReport(
        id=stage.id,
        kind=stage.kind,
        key=stage.key,
        parent=parent,
        path=str(path_of(plan, stage, store)),
        settings=stage.step.settings() if stage.step else {},
        seconds=made.get("seconds"),
        peak_memory=made.get("peak_memory"),
        cached=cached,
        notes=made.get("notes", {}),
        curves=made.get("curves", {}),
        warnings=made.get("warnings", []),
    )


def _write(report: Report, folder: Path, store: Store) -> None:
    store.write(folder / "report.json", report.model_dump_json(indent=1))


def _point(link: Path, target: Path) -> None:
    """Make `link` lead to the folder `target`, whatever it led to before."""
    draft = link.with_name(f"{link.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    draft.replace(link)
