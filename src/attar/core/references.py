"""What the parts of a recipe say of one another: ids, datasets, models, held-out data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attar.core.recipe import DataSource, Recipe
from attar.core.registry import nearest
from attar.core.step import is_address
from attar.errors import KeyPath, Problem


def check(recipe: Recipe) -> list[Problem]:
    """Every reference that leads nowhere, or to what it must not, with its path of keys."""
    return [
        *check_ids(recipe),
        *check_data(recipe),
        *check_held_out(recipe),
        *check_models(recipe),
        *check_dips(recipe),
    ]


def check_ids(recipe: Recipe) -> Iterator[Problem]:
    """Every stage has a name of its own."""
    ids = [step.id for step in recipe.steps]
    for index, name in enumerate(ids):
        if name == "original":
            text = "the id 'original' is the model's own before any step; choose another"
        elif name is not None and ids.count(name) > 1:
            others = [
                f"step {i + 1}" for i, other in enumerate(ids) if other == name and i != index
            ]
            text = f"the id {name!r} is also that of {' and '.join(others)}; choose another"
        else:
            continue
        yield Problem(f"{_who(recipe, index)}{text}", path=("steps", index, "id"))


def check_data(recipe: Recipe) -> Iterator[Problem]:
    """Every dataset that is read has a source."""
    for path, who, name in _data_read(recipe):
        if name in recipe.data:
            continue
        if not recipe.data:
            hint = ", and the recipe has no data. Add `data: PATH`"
        else:
            near = nearest(name, list(recipe.data)) or "."
            hint = f"{near} `data` has {', '.join(recipe.data)}"
        yield Problem(f"{who} reads the data {name!r}, which is not there{hint}", path=path)


def _data_read(recipe: Recipe) -> Iterator[tuple[KeyPath, str, str]]:
    for index, step in enumerate(recipe.steps):
        for setting, name in step.references("data"):
            yield ("steps", index, setting), f"{_who(recipe, index)}`{setting}`", name
    name = recipe.measures.data
    if recipe.data or name != type(recipe.measures).model_fields["data"].default:
        yield ("measures", "data"), "`measures.data`", name


def check_held_out(recipe: Recipe) -> Iterator[Problem]:
    """No step reads what the stages are judged on."""
    held_out = recipe.measures.data
    judge = recipe.data.get(held_out)
    for index, step in enumerate(recipe.steps):
        for setting, name in step.references("data"):
            source = recipe.data.get(name)
            if name == held_out:
                what = f"reads {name!r}, which `measures.data` names"
            elif judge is not None and source is not None and _overlap(source, judge):
                what = f"reads {name!r}, the same rows as {held_out!r}, which `measures.data` names"
            else:
                continue
            yield Problem(
                f"{_who(recipe, index)}`{setting}` {what}: held-out data is never calibration "
                "data, a model looks better than it is on what it was fitted to. Give one of the "
                "two another dataset",
                path=("steps", index, setting),
            )


def _overlap(one: DataSource, other: DataSource) -> bool:
    """The same path, and the same split of it; no split is all of it."""
    if one.split is not None and other.split is not None and one.split != other.split:
        return False
    return one.path == other.path or _same_file(one.path, other.path)


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):
        return False


def check_models(recipe: Recipe) -> Iterator[Problem]:
    """Every teacher and reference is the original, a stage that is there by then, or a path."""
    ids = recipe.stage_ids()
    for index, step in enumerate(recipe.steps):
        for setting, name in step.references("model"):
            who = f"{_who(recipe, index)}`{setting}`"
            if is_address(name) and step.asks:
                continue
            if (text := _lost(name, ids, index)) is not None:
                yield Problem(f"{who} is {name!r}, {text}", path=("steps", index, setting))
    reference = recipe.guard.reference
    if (text := _lost(reference, ids, len(ids))) is not None:
        text = f"`guard.reference` is {reference!r}, {text}"
        yield Problem(text, path=("guard", "reference"))


def _lost(name: str, ids: list[str], before: int) -> str | None:
    """Why a name leads to no model that is there before a step."""
    earlier = ["original", *ids[:before]]
    if name in earlier:
        return None
    choice = f"Name one of {', '.join(earlier)}, or the path of a model"
    if name in ids:
        where = ids.index(name) + 1
        which = "this step itself" if where == before + 1 else f"step {where}, which comes later"
        return f"the id of {which}. {choice}"
    if exists(Path(name)):
        return None
    step = "a step" if before == len(ids) else "an earlier step"
    hint = nearest(name, earlier) or "."
    return f"neither the id of {step} nor an existing path{hint} {choice}"


def exists(path: Path) -> bool:
    """Whether a path is there; what cannot be a path is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def check_dips(recipe: Recipe) -> Iterator[Problem]:
    """Every stage that may dip is there."""
    ids = recipe.stage_ids()
    for index, name in enumerate(recipe.guard.may_dip):
        if name not in ids:
            known = f"The stages are {', '.join(ids)}" if ids else "The recipe has no steps"
            hint = nearest(name, ids) or "."
            text = f"`guard.may_dip` names {name!r}, which is no stage{hint} {known}"
            yield Problem(text, path=("guard", "may_dip", index))


def _who(recipe: Recipe, index: int) -> str:
    return f"step {index + 1} ({recipe.steps[index].kind}): "
