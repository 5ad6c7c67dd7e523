"""Traits carried through a recipe's steps: what each step needs, and who left it otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from attar.core.grid import Grid
from attar.core.recipe import Recipe
from attar.core.registry import nearest
from attar.core.scope import ROLES, ModuleFact, Scope, outside_blocks
from attar.core.step import DataStep, Step
from attar.core.traits import ADAPTER, FLOAT, MASKED, QUANTIZED, SHARED, UNEVEN, Trait
from attar.engine.inputs import Inputs
from attar.models.families import family_of

_ORIGINAL = "the original"
_Blame = dict[str, dict[Trait | None, str]]  # who changed a module's trait last; None: any of them


@dataclass(frozen=True)
class Folded:
    """The recipe with no choice left open, and what does not fit, by step and who left it so."""

    recipe: Recipe
    problems: list[str]


def fold(
    recipe: Recipe,
    inputs: Inputs,
    facts: Sequence[ModuleFact],
    traits: dict[str, set[Trait]],
    room: float,
) -> Folded:
    """Carry traits through the steps; `room` is the bytes of memory for each weight."""
    problems: list[str] = []
    steps: list[Step] = []
    blame: _Blame = {}
    media, shapes = family_of(inputs.config.model_type).media, {"original": _shape(facts)}
    for number, (step, name) in enumerate(zip(recipe.steps, recipe.stage_ids(), strict=True), 1):
        shape = _shape(facts)
        theirs = shapes.get(getattr(step, "teacher", None) or "", shape)
        chosen = step.chosen(room, _had_by_all(step, facts, traits), inputs.task, theirs == shape)
        step = step if chosen is step else chosen.model_copy(update={"id": name})
        steps.append(step)
        where = f"step {number} ({step.kind})"
        if inputs.task not in step.tasks:
            problems.append(
                f"{where} works for {', '.join(step.tasks)}, and this model's task is {inputs.task}"
            )
        elif media and not step.media:
            problems.append(
                f"{where} works on models that read text, and this one takes in images or sounds"
            )
        if isinstance(step, DataStep):
            problems += [f"{where}: {text}" for text in step.check(facts)]
            continue
        if step.by_block and theirs != shape:
            problems.append(
                f"{where} matches blocks one by one, and its teacher has {theirs}, the model by "
                f"then {shape}. Take `heal: auto`; for a model of vectors `distill: auto`, before "
                "its weights are quantized"
            )
        origin, evened = step.origin(facts), set(step.evened(facts))
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
        outside = outside_blocks(facts, chosen) if step.walked else ()
        said = (*step.unfit(inputs.task), *step.check(facts), *outside)
        problems += [f"{where}: {text}" for text in said]
        touched = set(step.touched(facts)) - norms | set(tables)
        facts = step.reshape(facts)
        shapes[name] = _shape(facts)
        traits, blame = _moved(origin, traits, blame)
        for fact in facts:
            whole = fact.name.rpartition(".")[0]  # what it was split from, if it was
            if fact.name not in traits:
                traits[fact.name] = set(traits.get(whole, {FLOAT}))
            if fact.name in evened:
                traits[fact.name] = traits[fact.name] - {UNEVEN}
            if (fact.name in touched or whole in touched) and (step.removes or step.adds):
                traits[fact.name] = (traits[fact.name] - step.removes) | step.adds
                changed = dict.fromkeys((None, *step.removes, *step.adds), where)
                blame[fact.name] = {**blame.get(fact.name, {}), **changed}
    return Folded(recipe.model_copy(update={"steps": tuple(steps)}), problems)


def _shape(facts: Sequence[ModuleFact]) -> str:
    """How many blocks there are, and how wide."""
    pairs = [pair for fact in facts for pair in zip(fact.axes, fact.shape, strict=False)]
    hidden = max((size for axis, size in pairs if axis == "hidden"), default=0)
    count = len({fact.block for fact in facts if fact.block is not None})
    return f"{count} blocks of {hidden} channels"


def _had_by_all(
    step: Step, facts: Sequence[ModuleFact], traits: Mapping[str, set[Trait]]
) -> set[Trait]:
    """The traits that every linear in the step's scope has."""
    linears = set(step.scope.select(facts)) & set(Scope.linears().select(facts))
    each = [traits.get(name, {FLOAT}) for name in linears]
    return set[Trait].intersection(*each) if each else set()


def _moved(
    origin: Mapping[str, Sequence[str]], traits: dict[str, set[Trait]], blame: _Blame
) -> tuple[dict[str, set[Trait]], _Blame]:
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
            new_blame[name] = next(
                (blame[old] for old in known if old in blame), dict[Trait | None, str]()
            )
    return new_traits, new_blame


def _told(traits: set[Trait]) -> str:
    return "/".join(sorted(traits)) or "float or quantized, by which blocks go"


def _unmet(
    step: Step,
    chosen: Sequence[str],
    norms: set[str],
    traits: dict[str, set[Trait]],
    blame: _Blame,
) -> Iterator[str]:
    """What a step needs of its scope, and who left that otherwise; `{name}` is the step's own."""
    for need in sorted(step.needs):
        able = [module for module in chosen if need == FLOAT or module not in norms]
        lost = [module for module in able if need not in traits.get(module, {FLOAT})]
        if chosen and not able:
            yield f"{need} weights, and its scope names norms only. Widen its scope"
        if lost:
            yield (
                f"{need} weights, but {_who(blame, lost[0], need)} left {lost[0]} "
                f"{_told(traits[lost[0]])}. Move {{name}} before it, or narrow its scope"
            )
            return
    grid = _without_zero(step)
    for trait in sorted(_forbidden(step)):
        left = [module for module in chosen if trait in traits.get(module, ())]
        if left:
            who = _who(blame, left[0], trait)
            ours = who != _ORIGINAL
            way = "Move {name} before it" if ours else "Take another model, or leave the step out"
            if trait == MASKED and grid is not None:  # pruning wants floats, so it stays before
                whole = grid.model_copy(update={"offset": "zero"})
                way = (
                    f"The grid {grid.name} adds a minimum to all; take {whole.name}, which has 0 "
                    "(of quantize/rtn, gptq and others)"
                )
            yield (
                f"weights that are not {trait}, but {who} left "
                f"{left[0]} {'/'.join(sorted(traits[left[0]]))}. {way}"
            )


def _who(blame: _Blame, name: str, trait: Trait) -> str:
    """Who left a module with a trait, or without it."""
    found = blame.get(name, {})
    return found.get(trait) or found.get(None) or _ORIGINAL


def _forbidden(step: Step) -> frozenset[Trait]:
    """What weights may not be, whatever the step says of it itself."""
    found = set(step.forbidden())
    found |= {ADAPTER} - step.needs  # what one has learned goes with the weights as they are
    if _without_zero(step) is not None:
        found.add(MASKED)
    if not step.shares:
        found.add(SHARED)
    return frozenset(found)


def _without_zero(step: Step) -> Grid | None:
    """The grid of a step's that does not hold the zeros of a mask, where the step keeps them."""
    if MASKED in step.removes:
        return None
    names = (getattr(step, "grid", None), *getattr(step, "grids", ()))
    grids = (Grid.parse(name) for name in names if name is not None)
    return next((grid for grid in grids if grid.minimum), None)


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
