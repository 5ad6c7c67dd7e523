"""What a recipe will do: keys, traits and refusals, before any weight loads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

from attar.core.keys import key_of, seed_of
from attar.core.recipe import Guard, ModelSource, Recipe
from attar.core.scope import ModuleFact
from attar.core.step import DataStep, Step, Task, is_address
from attar.engine.fold import fold
from attar.engine.inputs import Inputs
from attar.engine.reading import strangers, unread
from attar.engine.store import Store
from attar.errors import PlanError, Problem
from attar.layers import QuantizedEmbedding, QuantizedLinear
from attar.measure.machine import check_device, fast_bf16, free_memory, whole_memory
from attar.models.load import skeleton
from attar.models.source import resolve
from attar.models.traits import traits_of
from attar.train import trackers
from attar.train.served import no_key

_MEASURED = {"classification": "accuracy", "contrastive": "accuracy", "embedding": "cosine"}
_ROUNDED = (QuantizedLinear, QuantizedEmbedding)  # a tied head has the embedding's codes


@dataclass(frozen=True)
class Stage:
    """The original (step is None), or what one step will make: a model, or data (no parent)."""

    id: str
    kind: str
    key: str
    parent: str | None
    step: Step | None
    seed: int
    cached: bool

    @property
    def makes_data(self) -> bool:
        """Whether it is a dataset, and no model."""
        return isinstance(self.step, DataStep)


@dataclass
class Plan:
    """Stages in order; the first is the original."""

    recipe: Recipe
    inputs: Inputs
    precision: str
    device: str
    stages: list[Stage]
    warnings: list[str] = field(default_factory=list[str])
    secret: Callable[[str], str | None] | None = field(default=None, repr=False)

    def stage(self, name: str) -> Stage:
        """The stage of this id."""
        return next(stage for stage in self.stages if stage.id == name)

    def check_secrets(self) -> None:
        """Raise PlanError where `secret` lacks a key that a stage yet to be made asks for."""
        problems = [
            Problem(f"step {number} ({stage.kind}): {no_key(name)}")
            for number, stage in enumerate(self.stages)
            for name in (stage.step.secrets() if stage.step and not stage.cached else ())
            if self.secret is None or not self.secret(name)
        ]
        if problems:
            raise PlanError(problems)

    @property
    def last(self) -> Stage:
        """The last stage that is a model."""
        return next(stage for stage in reversed(self.stages) if not stage.makes_data)


def make_plan(recipe: Recipe, store: Store, peek: bool = False, device: str = "cpu") -> Plan:
    """Work out every stage's key, and refuse what cannot work.

    With `peek` nothing large is read: keys of files not hashed yet are UNKNOWN.
    Raises PlanError with every reason at once.
    """
    check_device(device)
    inputs = Inputs(recipe, store)
    precision = recipe.precision
    if precision == "auto":
        precision = "bf16" if fast_bf16(device) else "float32"
    model = skeleton(inputs.config, inputs.task, inputs.labels)
    facts = model.facts()
    weights, budget = _weights(model.module, facts), _budget(recipe, free_memory)
    # What `auto` chose and made when more was free is found again; what is to be made fits now.
    for room in (_budget(recipe, whole_memory), budget):
        traits = traits_of(model.module, facts, inputs.adapted)
        folded = fold(recipe, inputs, facts, traits, room / weights)
        chosen, problems = folded.recipe, folded.problems
        problems += _misfits(chosen, inputs.task)
        problems += [*strangers(chosen, inputs), *unread(chosen, inputs)]
        problems += map(str, trackers.trouble(chosen.trackers))
        stages = [] if problems else _stages(chosen, inputs, store, precision, peek)
        made = {stage.id for stage in stages if stage.cached}
        over = _over_budget(chosen, weights, budget, made)
        if not over:
            break
    if problems or over:
        raise PlanError([Problem(problem) for problem in (*problems, *over)])
    return Plan(chosen, inputs, precision, device, stages)


def _budget(recipe: Recipe, otherwise: Callable[[], int]) -> float:
    """Bytes that a step may use."""
    return recipe.memory * 1e9 if recipe.memory else float(otherwise())


def _misfits(recipe: Recipe, task: Task) -> list[str]:
    """What the recipe asks to measure or to guard, and this task has no such thing."""
    own = _MEASURED.get(task, "perplexity")
    set_ = {name for name, value in recipe.guard if value is not None}
    problems = [
        f"guard.{bound} is set, but a model for {task} is measured by its {own}. "
        + (f"Set guard.{own} instead" if own in Guard.model_fields else "Leave it out")
        for bound in sorted({"perplexity", "accuracy"} - {own})
        if bound in recipe.guard.model_fields_set & set_
    ]
    if recipe.measures.also and task == "embedding":
        problems.append(
            "measures.also is set, but vectors are told by their cosine to the reference's, on "
            "measures.data alone. Leave it out"
        )
    if recipe.measures.prompts and task != "causal-lm":
        problems.append(
            f"measures.prompts is set, but a model for {task} writes no text. Leave it out"
        )
    return problems


def _weights(module: Any, facts: Sequence[ModuleFact]) -> int:
    """How many weights there are to hold, those counted that codes stand for."""
    rounded = (f for f in facts if isinstance(module.get_submodule(f.name), _ROUNDED))
    floats = sum(parameter.numel() for parameter in module.parameters())
    return floats + sum(prod(fact.shape) for fact in rounded)


def _over_budget(recipe: Recipe, weights: int, budget: float, made: Collection[str]) -> list[str]:
    """The steps that do not fit the memory, but for those whose stages are `made` already."""
    return [
        f"step {number} ({step.kind}) trains the whole model and needs about "
        f"{weights * step.bytes_each() / 1e9:.1f} GB for {weights / 1e6:.0f} million weights; "
        f"there are {budget / 1e9:.1f} GB. Raise `memory`, take a smaller model, or leave it out"
        for number, (step, name) in enumerate(zip(recipe.steps, recipe.stage_ids(), strict=True), 1)
        if step.whole and name not in made and weights * step.bytes_each() > budget
    ]


def _stages(
    recipe: Recipe, inputs: Inputs, store: Store, precision: str, peek: bool
) -> list[Stage]:
    key = inputs.root_key(peek)
    stages = [Stage("original", "original", key, None, None, recipe.seed, store.has(key))]
    keys = {"original": key}
    counts: dict[str, int] = {}
    for step, name in zip(recipe.steps, recipe.stage_ids(), strict=True):
        counts[step.kind] = counts.get(step.kind, 0) + 1
        seed = seed_of(recipe.seed, step.kind, counts[step.kind])
        what = (*request_of(step, inputs, keys, peek), precision, seed)
        if isinstance(step, DataStep):
            read_as = [inputs.task, list(inputs.labels)]
            inputs.made[name] = made = key_of("data", read_as, *what)
            stages.append(Stage(name, step.kind, made, None, step, seed, store.has(made)))
            continue
        parent = key
        keys[name] = key = key_of("step", parent, *what)
        stages.append(Stage(name, step.kind, key, parent, step, seed, store.has(key)))
    return stages


def request_of(step: Step, inputs: Inputs, keys: Mapping[str, str], peek: bool) -> list[Any]:
    """What a step is asked to do, for a key: its settings, and the content of what it reads.

    keys: those of the models that stages make, by id.
    """

    def model(name: str) -> str:
        return keys.get(name) or other_model(name, inputs.store, peek)

    reads = step.keyed_references("data", partial(inputs.data_key, peek=peek))
    reads |= step.keyed_references("model", model)
    reads |= step.keyed_references("file", partial(inputs.file_key, peek=peek))
    settings = {k: v for k, v in step.keyed_settings().items() if k not in reads}
    return [step.kind, step.version, settings, reads]


def other_model(path: str, store: Store, peek: bool = False) -> str:
    """The key of a model that no stage makes; of a served one all that is known is its address."""
    if is_address(path):
        return key_of("served", path)
    return resolve(ModelSource(path=path)).content(store.hashes, peek)
