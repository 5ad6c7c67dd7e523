"""Making one stage: load the parent, apply the step, publish the artifact."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attar.core.context import Context, Progress
from attar.core.keys import hash_file, key_of
from attar.core.recipe import ModelSource
from attar.core.step import Task
from attar.engine.plan import Plan, Stage, other_model
from attar.engine.store import REPORT_FILE, STEP_FILE, Store, readable
from attar.engine.watch import watched
from attar.errors import (
    AttarError,
    DataError,
    MissingPackage,
    ModelError,
    UserError,
)
from attar.models import Files, Model, load, save
from attar.models.load import check_finite


def path_of(plan: Plan, stage: Stage, store: Store) -> Path:
    """The folder of a stage's model: in the store, or where the original is."""
    if stage.step is None and not needs_copy(plan):
        return plan.inputs.files.folder
    return store.path(stage.key)


def needs_copy(plan: Plan) -> bool:
    """Whether the original cannot be used where it is: GGUF, another dtype, drawn weights."""
    inputs = plan.inputs
    return (
        inputs.files.gguf is not None
        or inputs.files.fresh
        or inputs.fresh_head
        or inputs.recipe.model.dtype != "auto"
        or inputs.task == "classification"
    )


def open_stage(plan: Plan, stage: Stage, store: Store) -> Model:
    """Load a stage that has been made, onto the device that the plan computes on."""
    return _placed(load(Files(path_of(plan, stage, store)), plan.inputs.task), plan)


def _placed(model: Model, plan: Plan) -> Model:
    model.module.to(plan.device)
    return model


def make(
    plan: Plan, stage: Stage, store: Store, progress: Progress, publishes: bool = True
) -> None:
    """Make a stage that is not in the store yet, and publish it.

    Of several processes that train together, one `publishes`.
    """
    if stage.step is None:
        if needs_copy(plan):
            _import_original(plan, stage, store, progress)
        return
    parent = next(other for other in plan.stages if other.key == stage.parent)
    ctx = context(plan, stage, store, progress)
    started = time.monotonic()
    who = f"step {stage.id!r} ({stage.kind})"
    with watched(who, "Lower its `batch` or `length`") as memory:
        parent_model = open_stage(plan, parent, store)
        with readable(f"{who} could not write to {store.home}", store.home):
            model = _apply(stage, parent_model, ctx)
    seconds = time.monotonic() - started
    _check(model, who)
    if not publishes:
        return
    facts = {
        "kind": stage.kind,
        "version": stage.step.version,
        "settings": stage.step.keyed_settings(),
        "parent": stage.parent,
        "seed": stage.seed,
    }
    made = {
        "seconds": seconds,
        "peak_memory": memory.peak,
        "notes": ctx.notes,
        "curves": ctx.curves,
        "warnings": ctx.warnings,
    }
    _publish(store, plan, stage, model, facts, made)
    store.clear_scratch(stage.key)


def context(plan: Plan, stage: Stage, store: Store, progress: Progress) -> Context:
    """What the step of a stage is given."""

    def open_model(name: str, task: Task | None = None) -> Model:
        if task not in (None, plan.inputs.task) and name == "original":
            return _placed(load(plan.recipe.model, task), plan)
        if name in (other.id for other in plan.stages):
            return open_stage(plan, plan.stage(name), store)
        return _placed(load(ModelSource(path=name), task or plan.inputs.task), plan)

    def beside(name: str) -> Path:
        keys = {other.id: other.key for other in plan.stages}
        key = keys[name] if name in keys else other_model(name, store)
        return store.home / "teachers" / key_of(key, plan.precision)

    return Context(
        task=plan.inputs.task,
        data=plan.inputs.dataset,
        model=open_model,
        seed=stage.seed,
        device=plan.device,
        precision=plan.precision,
        scratch=store.scratch(stage.key),
        memory=plan.inputs.recipe.memory and plan.inputs.recipe.memory * 1e9,
        beside=beside,
        secret=plan.secret or (lambda _: None),
        progress=progress,
        trackers=plan.recipe.trackers,
        logs=store.run_folder(plan.recipe.name) / "trackers" / f"{stage.id}-{stage.key[:8]}",
    )


def _apply(stage: Stage, model: Model, ctx: Context) -> Model:
    if stage.step is None:
        raise UserError("the original has no step to apply")
    with naming(stage):
        return stage.step.apply(model, ctx)


@contextmanager
def naming(stage: Stage) -> Generator[None]:
    """Put the step's id and kind in front of a mistake that names nothing else."""
    try:
        yield
    except (ModelError, DataError, MissingPackage):
        raise  # it names a file, or what to install
    except UserError as error:
        raise UserError(f"step {stage.id!r} ({stage.kind}): {error}") from error


def _check(model: Model, who: str) -> None:
    try:
        check_finite(model.module, f"what {who} made")
    except ModelError as error:
        raise AttarError(f"{error}. Nothing was published; the stages before are kept") from None


def _import_original(plan: Plan, stage: Stage, store: Store, progress: Progress) -> None:
    inputs = plan.inputs
    progress.say(f"reading {inputs.recipe.model.path}")
    started = time.monotonic()
    with watched("reading the model", "Set model.dtype to bfloat16") as memory:
        model = load(inputs.recipe.model, inputs.task, inputs.labels, inputs.recipe.seed)
    facts: dict[str, Any] = {
        "kind": "original",
        "version": 1,
        "settings": inputs.recipe.model.model_dump(mode="json", exclude={"path"}),
        "parent": None,
        "seed": stage.seed,
    }
    made = {"seconds": time.monotonic() - started, "peak_memory": memory.peak}
    _publish(store, plan, stage, model, facts, made)


def _publish(
    store: Store,
    plan: Plan,
    stage: Stage,
    model: Model,
    facts: dict[str, Any],
    made: dict[str, Any],
) -> None:
    """`facts` are the same for every run that makes this artifact; `made` tells of this one."""
    named = {"key": stage.key, "task": plan.inputs.task, "labels": model.labels}
    publish(store, stage.key, lambda folder: save(model, folder), {**named, **facts}, made)


def publish(
    store: Store,
    key: str,
    write: Callable[[Path], None],
    facts: dict[str, Any],
    made: dict[str, Any],
) -> None:
    """Keep what `write` puts into a folder, with its hashes, as the artifact of a key."""
    with store.draft(key) as folder:
        write(folder)
        files = {  # those of folders too: of a tokenizer with several chat templates
            path.relative_to(folder).as_posix(): hash_file(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        facts = {**facts, "files": files}
        (folder / STEP_FILE).write_text(json.dumps(facts, indent=1, sort_keys=True), "utf-8")
        (folder / REPORT_FILE).write_text(json.dumps(made, indent=1), "utf-8")
    store.hashes.remember({store.path(key) / name: sha for name, sha in files.items()})
