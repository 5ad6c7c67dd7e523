"""What a recipe will do: keys, traits and refusals, before any weight loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from attar.core.grid import Grid
from attar.core.keys import key_of, seed_of
from attar.core.recipe import Guard, ModelSource, Recipe
from attar.core.registry import nearest
from attar.core.scope import ROLES, ModuleFact
from attar.core.step import Step, Task
from attar.core.traits import FLOAT, LOWRANK, MASKED, QUANTIZED, SHARED, UNEVEN, Trait
from attar.engine.inputs import Inputs
from attar.engine.store import Store
from attar.errors import PlanError, Problem
from attar.layers import LowRank, QuantizedEmbedding, QuantizedLinear
from attar.layers.shared import sharing
from attar.measure.machine import check_device, fast_bf16, free_memory
from attar.models.load import config_of, skeleton
from attar.models.masks import is_masked
from attar.models.source import resolve
from attar.models.uneven import uneven
from attar.train import trackers

_ORIGINAL = "the original"
_ROUNDED = (QuantizedLinear, QuantizedEmbedding)  # a tied head has the embedding's codes


@dataclass(frozen=True)
class Stage:
    """The original (step is None), or what one step will make."""

    id: str
    kind: str
    key: str
    parent: str | None
    step: Step | None
    seed: int
    cached: bool


@dataclass
class Plan:
    """Stages in order; the first is the original."""

    recipe: Recipe
    inputs: Inputs
    precision: str
    device: str
    stages: list[Stage]
    warnings: list[str] = field(default_factory=list[str])

    def stage(self, name: str) -> Stage:
        """The stage of this id."""
        return next(stage for stage in self.stages if stage.id == name)


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
    problems = fold(recipe, inputs, facts, traits_of(model.module, facts))
    problems += _over_budget(recipe, _weights(model.module, facts))
    problems += _misfits(recipe, inputs.task)
    problems += _strangers(recipe, inputs)
    problems += map(str, trackers.trouble(recipe.trackers))
    if problems:
        raise PlanError([Problem(problem) for problem in problems])
    return Plan(recipe, inputs, precision, device, _stages(recipe, inputs, store, precision, peek))


def traits_of(module: Any, facts: Sequence[ModuleFact]) -> dict[str, set[Trait]]:
    """The traits that the original's modules start with."""
    traits: dict[str, set[Trait]] = {}
    shared = sharing(module)
    for fact in facts:
        part = module.get_submodule(fact.name)
        traits[fact.name] = {QUANTIZED if hasattr(part, "simulated") else FLOAT}
        if is_masked(part):
            traits[fact.name].add(MASKED)
        if fact.name in shared and fact.role != "norm":
            traits[fact.name].add(SHARED)
        if isinstance(module.get_submodule(fact.name.rpartition(".")[0]), LowRank):
            traits[fact.name].add(LOWRANK)
    for name in uneven(module, facts):
        traits[name].add(UNEVEN)
    return traits


def fold(
    recipe: Recipe,
    inputs: Inputs,
    facts: Sequence[ModuleFact],
    traits: dict[str, set[Trait]],
) -> list[str]:
    """Carry traits through the steps; what does not fit, by step and by who left it so."""
    problems: list[str] = []
    blame: dict[str, str] = {}
    for number, (step, name) in enumerate(zip(recipe.steps, recipe.stage_ids(), strict=True), 1):
        where = f"step {number} ({step.kind})"
        origin, evened = step.origin(facts), set(step.evened(facts))
        if inputs.task not in step.tasks:
            problems.append(
                f"{where} works for {', '.join(step.tasks)}, and this model's task is {inputs.task}"
            )
        chosen = step.scope.select(facts)
        if not chosen:
            problems.append(
                f"{where} has an empty scope: {list(step.scope.patterns)} names no module"
                f"{_near(step, facts)} `attar show MODEL` prints the modules' names"
            )
        norms = {fact.name for fact in facts if fact.role == "norm"}  # float, whatever is done
        tables = _tables(step, facts, inputs)
        for text in _unmet(step, [*chosen, *tables], norms, traits, blame):
            problems.append(f"{where} needs {text.format(name=repr(name))}")
        problems += [f"{where}: {text}" for text in step.check(facts)]
        touched = set(step.touched(facts)) - norms | set(tables)
        facts = step.reshape(facts)
        traits, blame = _moved(origin, traits, blame)
        for fact in facts:
            whole = fact.name.rpartition(".")[0]  # what it was split from, if it was
            if fact.name not in traits:
                traits[fact.name] = set(traits.get(whole, {FLOAT}))
            if fact.name in evened:
                traits[fact.name] = traits[fact.name] - {UNEVEN}
            if (fact.name in touched or whole in touched) and (step.removes or step.adds):
                traits[fact.name] = (traits[fact.name] - step.removes) | step.adds
                blame[fact.name] = where
    return problems


def _moved(
    origin: Mapping[str, Sequence[str]], traits: dict[str, set[Trait]], blame: dict[str, str]
) -> tuple[dict[str, set[Trait]], dict[str, str]]:
    """Traits and blame under the names that modules have now.

    Of what a module may have been, it surely is float or quantized only where all were, and may
    have any other trait that one of them had: steps need the former, and forbid the latter.
    """
    new_traits, new_blame = dict(traits), dict(blame)
    for name, before in origin.items():
        known = [old for old in before if old in traits]
        if known:
            found = [traits[old] for old in known]
            new_traits[name] = {
                trait
                for one in found
                for trait in one
                if trait not in (FLOAT, QUANTIZED) or all(trait in other for other in found)
            }
            new_blame[name] = next((blame[old] for old in known if old in blame), _ORIGINAL)
    return new_traits, new_blame


def _told(traits: set[Trait]) -> str:
    return "/".join(sorted(traits)) or "float or quantized, by which blocks go"


def _unmet(
    step: Step,
    chosen: Sequence[str],
    norms: set[str],
    traits: dict[str, set[Trait]],
    blame: dict[str, str],
) -> Iterator[str]:
    """What a step needs of its scope, and who left that otherwise; `{name}` is the step's own."""
    for need in sorted(step.needs):
        able = [module for module in chosen if need == FLOAT or module not in norms]
        lost = [module for module in able if need not in traits.get(module, {FLOAT})]
        if chosen and not able:
            yield f"{need} weights, and its scope names norms only. Widen its scope"
        if lost:
            yield (
                f"{need} weights, but {blame.get(lost[0], 'the original')} left {lost[0]} "
                f"{_told(traits[lost[0]])}. Move {{name}} before it, or narrow its scope"
            )
            return
    for trait in sorted(_forbidden(step)):
        left = [module for module in chosen if trait in traits.get(module, ())]
        if left:
            who = blame.get(left[0], _ORIGINAL)
            ours = who != _ORIGINAL
            way = "Move {name} before it" if ours else "Take another model, or leave the step out"
            yield (
                f"weights that are not {trait}, but {who} left "
                f"{left[0]} {'/'.join(sorted(traits[left[0]]))}. {way}"
            )


def _forbidden(step: Step) -> frozenset[Trait]:
    """What weights may not be: nor masked, where the step rounds to a grid that holds no zero."""
    name = getattr(step, "grid", None)
    zero = frozenset({MASKED} if name is not None and Grid.parse(name).minimum else ())
    return step.forbids | zero | frozenset(() if step.shares else {SHARED})


def _tables(step: Step, facts: Sequence[ModuleFact], inputs: Inputs) -> list[str]:
    """The embedding, and a head that is tied to it, that a step rounds beside its scope."""
    if getattr(step, "embeddings", None) is None:
        return []
    tied = bool(getattr(inputs.config, "tie_word_embeddings", False))
    roles = ("embedding", "head") if tied else ("embedding",)
    return [fact.name for fact in facts if fact.role in roles]


def _near(step: Step, facts: Sequence[ModuleFact]) -> str:
    """What a scope's patterns were most likely meant to name."""
    last = sorted({fact.name.rpartition(".")[2] for fact in facts})
    known = [*last, *(f"*.{name}" for name in last), "linears", *ROLES]
    hints = (nearest(pattern, known) for pattern in step.scope.patterns)
    return next((hint for hint in hints if hint), ".")


def _misfits(recipe: Recipe, task: Task) -> list[str]:
    """What the recipe asks to measure or to guard, and this task has no such thing."""
    own = {"classification": "accuracy", "embedding": "cosine"}.get(task, "perplexity")
    set_ = {name for name, value in recipe.guard if value is not None}
    problems = [
        f"guard.{bound} is set, but a model for {task} is measured by its {own}. "
        + (f"Set guard.{own} instead" if own in Guard.model_fields else "Leave it out")
        for bound in sorted({"perplexity", "accuracy"} - {own})
        if bound in recipe.guard.model_fields_set & set_
    ]
    if recipe.measures.prompts and task != "causal-lm":
        problems.append(
            f"measures.prompts is set, but a model for {task} writes no text. Leave it out"
        )
    return problems


def _strangers(recipe: Recipe, inputs: Inputs) -> list[str]:
    """Models that a step learns from, and whose tokens cannot be the original's."""
    problems: list[str] = []
    own = inputs.config.vocab_size
    ids = {"original", *recipe.stage_ids()}
    for number, step in enumerate(recipe.steps, 1):
        for setting, path in step.references("model"):
            if path in ids:
                continue
            source = ModelSource(path=path)
            theirs = config_of(resolve(source), source).vocab_size
            if theirs != own:
                problems.append(
                    f"step {number} ({step.kind}): `{setting}` {path} has a vocabulary of {theirs} "
                    f"tokens, and {recipe.model.path} one of {own}, so their predictions cannot "
                    "be compared. Take one of the same family, with the same tokenizer"
                )
    return problems


def _weights(module: Any, facts: Sequence[ModuleFact]) -> int:
    """How many weights there are to hold, those counted that codes stand for."""
    rounded = (f for f in facts if isinstance(module.get_submodule(f.name), _ROUNDED))
    floats = sum(parameter.numel() for parameter in module.parameters())
    return floats + sum(prod(fact.shape) for fact in rounded)


def _over_budget(recipe: Recipe, weights: int) -> list[str]:
    budget = recipe.memory * 1e9 if recipe.memory else free_memory()
    return [
        f"step {number} ({step.kind}) trains the whole model and needs about "
        f"{weights * step.training_bytes / 1e9:.1f} GB for {weights / 1e6:.0f} million weights; "
        f"there are {budget / 1e9:.1f} GB. Raise `memory`, take a smaller model, or leave it out"
        for number, step in enumerate(recipe.steps, 1)
        if step.whole and weights * step.training_bytes > budget
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
        reads = {field: inputs.data_key(value, peek) for field, value in step.references("data")}
        for field_, value in step.references("model"):
            reads[field_] = keys[value] if value in keys else _other_model(value, store, peek)
        settings = {k: v for k, v in step.keyed_settings().items() if k not in reads}
        parent = key
        key = key_of("step", parent, step.kind, step.version, settings, reads, precision, seed)
        keys[name] = key
        stages.append(Stage(name, step.kind, key, parent, step, seed, store.has(key)))
    return stages


def _other_model(path: str, store: Store, peek: bool) -> str:
    return resolve(ModelSource(path=path)).content(store.hashes, peek)
