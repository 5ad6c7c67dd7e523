"""What each technique would cost if it were applied to one part of a model alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.sensitivity import divergences
from attar.calibrate.table import By, Part, label_of, parts_of
from attar.core.context import Context, Progress, Silent
from attar.core.keys import key_of
from attar.core.recipe import Recipe
from attar.core.report import Report, StageReport
from attar.core.scope import ModuleFact, Scope
from attar.core.step import DataStep, Step
from attar.engine.fold import fold
from attar.engine.make import context, make, needs_copy, open_stage
from attar.engine.plan import Plan, make_plan, request_of
from attar.engine.store import Store
from attar.errors import PlanError, Problem
from attar.measure.machine import environment
from attar.models import Model
from attar.models.load import skeleton
from attar.models.traits import traits_of

VERSION = 2


@dataclass(frozen=True)
class Sensitivity:
    """What every part lost, by technique, in the parts' order, in `unit`.

    That is KL(original || changed) in nats, of a model of vectors 1 - cosine.
    """

    parts: list[Part]
    divergences: dict[str, list[float]]
    report: Report
    folder: Path
    unit: str


def sensitivity(
    recipe: Recipe,
    home: str | Path,
    rows: Calibrated,
    progress: Progress | None = None,
    device: str = "cpu",
    by: By = "role",
) -> Sensitivity:
    """Measure what each step of a recipe costs each block's attention and MLP, or each linear.

    Every part is changed alone, and the steps do not follow one another. What is measured of a
    step is kept in the store. Raises PlanError for steps that train, that take blocks out, or that
    do not fit the model.
    """
    progress, store = progress or Silent(), Store(Path(home))
    store.prepare()
    plan = make_plan(recipe.model_copy(update={"steps": ()}), store, device=device)
    _refuse(plan, recipe.steps, by)
    root = plan.stages[0]
    if needs_copy(plan) and not store.has(root.key):
        make(plan, root, store, progress)
    model = open_stage(plan, root, store)
    ctx = replace(context(plan, root, store, progress), scratch=None)
    batches, parts = calibration(rows, model, ctx), parts_of(model, Scope.linears(), by)
    found: dict[str, list[float]] = {}
    for step in recipe.steps:
        label = _label(step)
        progress.say(label)
        key = f"{root.key}-{_key(plan, step, rows, by)}"
        kept = store.measurement(key)
        if kept is None:
            lost = divergences(model, batches, parts, {label: _change(step, model, ctx)}, ctx)
            kept = {"divergence": lost[label]}
            store.keep_measurement(key, kept)
        found[label] = kept["divergence"]
    report, folder = _report(plan, parts, found), store.run_folder(recipe.name)
    store.write(folder / "report.json", report.model_dump_json(indent=1))
    unit = "1 - cosine" if model.task == "embedding" else "KL"
    return Sensitivity(parts, found, report, folder, unit)


def _key(plan: Plan, step: Step, rows: Calibrated, by: By) -> str:
    what = request_of(step, plan.inputs, {"original": plan.stages[0].key}, peek=False)
    data = plan.inputs.data_key(rows.data)
    measured = [rows.sequences, rows.length, plan.precision, plan.recipe.seed, by]
    return key_of("sensitivity", VERSION, what, data, measured)


def _label(step: Step) -> str:
    """A technique with the settings that were asked for."""
    given = step.model_dump(mode="json", exclude_unset=True, exclude={"id", "scope"})
    return label_of(step.kind, given)


def _refuse(plan: Plan, steps: tuple[Step, ...], by: By) -> None:
    """Raise PlanError for steps that, each alone, do not fit the original or a part of it."""
    if plan.inputs.media:
        raise PlanError([Problem("only models that read text are measured part by part")])
    empty = skeleton(plan.inputs.config, plan.inputs.task, plan.inputs.labels)
    facts, parts = empty.facts(), parts_of(empty, Scope.linears(), by)
    problems: list[str] = []
    for step in steps:
        alone = plan.recipe.model_copy(update={"steps": (step,)})
        traits = traits_of(empty.module, facts, plan.inputs.adapted)
        folded = fold(alone, plan.inputs, facts, traits, float("inf"))
        problems += folded.problems
        unfit = ((part, _unfit(folded.recipe.steps[0], facts, part)) for part in parts)
        found = next(((part, why) for part, why in unfit if why is not None), None)
        if found is not None:
            part, why = found
            problems.append(
                f"{step.kind} {why}, so it cannot be applied to {part.name} of block {part.block} "
                "alone. Leave it out"
            )
    if problems:
        raise PlanError([Problem(problem) for problem in problems])


def _unfit(step: Step, facts: Sequence[ModuleFact], part: Part) -> str | None:
    if isinstance(step, DataStep):
        return "makes data"
    if step.whole:
        return "trains the whole model"
    if getattr(step, "embeddings", None) is not None:
        return "rounds the embeddings too"
    narrow = _on(step, part.names)
    refused = next(iter(narrow.check(facts)), None)
    if refused is not None:
        return f"does not work there ({refused})"
    inside = tuple(f"{name}." for name in part.names)  # what they were split into, with the dot
    rest = [fact for fact in narrow.reshape(facts) if not f"{fact.name}.".startswith(inside)]
    if rest != [fact for fact in facts if fact.name not in part.names]:
        return "changes more than its scope"
    return None


def _on(step: Step, names: Sequence[str]) -> Step:
    return step.model_copy(update={"scope": Scope(patterns=tuple(names))})


def _change(step: Step, model: Model, ctx: Context) -> Callable[[list[str]], Any]:
    quiet = replace(ctx, progress=Silent(), notes={}, curves={}, warnings=[])

    def change(names: list[str]) -> None:
        _on(step, names).apply(model, quiet)

    return change


def _report(plan: Plan, parts: list[Part], found: dict[str, list[float]]) -> Report:
    curves: dict[str, list[tuple[float, float]]] = {}
    for label, values in found.items():
        for part, value in zip(parts, values, strict=True):
            curves.setdefault(f"block divergence, {part.name}, {label}", []).append(
                (part.block, value)
            )
    root = plan.stages[0]
    return Report(
        name=plan.recipe.name,
        task=plan.inputs.task,
        recipe=plan.recipe.plain(),
        environment={**environment(), "device": plan.device, "precision": plan.precision},
        stages=[StageReport(id=root.id, kind=root.kind, key=root.key, curves=curves)],
        finished=True,
    )
