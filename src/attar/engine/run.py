"""Running a recipe: make what is missing, measure it, judge it, and say what it cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attar.core.context import Progress, Silent
from attar.core.recipe import Recipe
from attar.core.recipe_file import build, read
from attar.core.report import Report, StageReport
from attar.core.step import DataStep
from attar.data import Dataset
from attar.engine.make import make, needs_copy, path_of
from attar.engine.make_data import figures_of, leaks, make_data
from attar.engine.measuring import Measuring
from attar.engine.plan import Plan, Stage, make_plan
from attar.engine.store import Store, readable
from attar.engine.watch import watched
from attar.errors import GuardFailed
from attar.measure.machine import environment
from attar.models import Model, load
from attar.models.source import Files
from attar.train.processes import Processes, join

HOME = ".attar"


@dataclass(frozen=True)
class Run:
    """A finished run: its report, its folder, and the pressed model's folder.

    `data` gives a dataset of the recipe by its name, those that steps made too.
    """

    report: Report
    folder: Path
    path: Path
    data: Callable[[str], Dataset]

    def load(self) -> Model:
        """The pressed model with its tokenizer."""
        return load(Files(self.path))


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    home: str | Path = HOME,
    progress: Progress | None = None,
    device: str = "cpu",
    secret: Callable[[str], str | None] | None = None,
) -> Run:
    """Run a recipe, given as a Recipe, plain data, or the path of a YAML file.

    What the store under `home` already holds is not made again, so a run that was killed goes
    on where it was. Under `accelerate launch` the processes train together, and the first one
    alone does everything else. `secret` gives a server's key by the name that the recipe has for
    it, as `os.environ.get` does. Raises GuardFailed, with the report written, when a stage is
    outside its bound and may not dip; errors of `attar.errors` for everything else.
    """
    recipe, processes = as_recipe(recipe), join(device)
    progress = progress if progress and processes.main else Silent()
    processes.lead(lambda: Store(Path(home)).prepare())

    def planned(recipe: Recipe) -> Plan:
        return make_plan(recipe, Store(Path(home)), device=processes.device)

    # What is left to the plan goes by free memory, and all processes must choose the same.
    settled = recipe if processes.count == 1 else processes.lead(lambda: planned(recipe).recipe)
    plan = processes.each(lambda: planned(settled))
    plan.secret = secret
    running = _Running(plan, processes, progress)
    processes.lead(running.begin)
    for stage in plan.stages:
        there = processes.lead(partial(running.is_there, stage))
        if not there:
            running.make(stage)
        processes.lead(partial(running.judge, stage, there))
    return processes.lead(running.finish)


def as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    """A Recipe from any way of giving one."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str | Path):
        return read(Path(recipe))
    return build(recipe)


class _Running:
    """A run under way; `make` alone is for all processes, and shares its work out itself."""

    def __init__(self, plan: Plan, processes: Processes, progress: Progress) -> None:
        self.plan, self.processes, self.progress = plan, processes, progress
        self.store = plan.inputs.store
        self.folder = self.store.home / "runs" / plan.recipe.name
        self.measuring = Measuring(plan, self.store, progress)
        self.report = Report(
            name=plan.recipe.name,
            task=plan.inputs.task,
            recipe=plan.recipe.plain(),
            environment={
                **environment(),
                "device": plan.device,
                "processes": processes.count,
                "precision": plan.precision,
            },
            stages=[],
        )

    def begin(self) -> None:
        """Look at the keys and the data, and write down the recipe."""
        self.plan.check_secrets()
        self.report.warnings = [*self.plan.inputs.check_data(), *self.plan.warnings]
        self.store.run_folder(self.plan.recipe.name)
        self.store.write(self.folder / "lock.yaml", self.plan.recipe.to_yaml())
        for warning in self.report.warnings:
            self.progress.say(f"warning: {warning}")

    def is_there(self, stage: Stage) -> bool:
        """Whether a stage is made already, and as it was written."""
        number = self.plan.stages.index(stage) + 1
        self.progress.say(f"[{number}/{len(self.plan.stages)}] {stage.id} ({stage.kind})")
        if self.store.has(stage.key):
            self.store.verify(stage.key)
            return True
        return stage.step is None and not needs_copy(self.plan)

    def make(self, stage: Stage) -> None:
        """Make a stage: together where it trains, and else on the first process alone."""
        if isinstance(stage.step, DataStep):
            self.processes.lead(partial(make_data, self.plan, stage, self.store, self.progress))
            return
        work = partial(make, self.plan, stage, self.store, self.progress)
        if stage.step is not None and stage.step.whole:
            work(publishes=self.processes.main)
        else:
            self.processes.lead(work)

    def judge(self, stage: Stage, cached: bool) -> None:
        """Measure a stage, put it into the report, and stop where the guard refuses it.

        Data is not measured.
        """
        row = _row(self.plan, stage, self.store, cached)
        if isinstance(stage.step, DataStep):
            self._told(stage, row)
            return
        with watched(f"measuring {stage.id!r}", "Lower measures.batch or measures.length"):
            self.measuring.measure(stage, row)
        self.report.stages.append(row)
        self.report.samples = self.measuring.samples()
        self._write()
        if row.verdict.status == "outside":
            raise GuardFailed(
                f"stage {stage.id!r} is outside its bound: {'; '.join(row.verdict.reasons)}. It "
                f"is kept at {row.path} and marked so; the report is in {self.folder}"
            )

    def _told(self, stage: Stage, row: StageReport) -> None:
        """Put data into the report."""
        row.figures.update(figures_of(row.notes))
        for warning in leaks(self.plan, stage):
            row.warnings.append(warning)
            self.progress.say(f"warning: {warning}")
        self.report.stages.append(row)
        self._write()

    def finish(self) -> Run:
        """Lead `model` to what the last step made."""
        self.report.finished = True
        self._write()
        last = path_of(self.plan, self.plan.last, self.store)
        with readable(f"{self.folder / 'model'} could not be written", self.store.home):
            _point(self.folder / "model", last)
        return Run(self.report, self.folder, last, self.plan.inputs.dataset)

    def _write(self) -> None:
        self.store.write(self.folder / "report.json", self.report.model_dump_json(indent=1))


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


def _point(link: Path, target: Path) -> None:
    """Make `link` lead to the folder `target`, whatever it led to before."""
    draft = link.with_name(f"{link.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    draft.replace(link)
