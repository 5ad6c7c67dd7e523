"""What the parts of a recipe say of one another: ids, datasets, models, held-out data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attar.core.recipe import DataSource, Recipe
from attar.core.registry import nearest
from attar.core.step import DataStep, is_address
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
    """Every stage has a name of its own, and so has every dataset."""
    for index, name in _made(recipe):
        if name in recipe.data:
            text = f"it makes the data {name!r}, a name that `data` has already. Give it another id"
            yield Problem(f"{_who(recipe, index)}{text}", path=("steps", index))
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
    """Every dataset that is read has a source, or a step that has made it by then."""
    makers = {name: index for index, name in _made(recipe)}
    for path, who, name in _data_read(recipe):
        reader = int(path[1]) if path[0] == "steps" else None
        maker = makers.get(name)
        if name in recipe.data or (maker is not None and reader is not None and maker < reader):
            continue
        yield Problem(f"{who} reads the data {name!r}, {_nowhere(recipe, name, reader)}", path=path)


def _nowhere(recipe: Recipe, name: str, reader: int | None) -> str:
    """Why there is no data of a name for a step, or for the measures (None)."""
    makers = {made: index for index, made in _made(recipe)}
    there = [*recipe.data, *(made for made, index in makers.items() if index < (reader or 0))]
    if name in makers and reader is None:
        what = f"which step {makers[name] + 1} makes: models are judged on data that no step made"
        return f"{what}. `data` has {', '.join(recipe.data) or 'none'}"
    if name in makers:
        if makers[name] == reader:
            return "which is what it makes. Give it other data to read"
        return f"which step {makers[name] + 1} makes later. Move that step before this one"
    if not there:
        return "which is not there, and the recipe has no data. Add `data: PATH`"
    return f"which is not there{nearest(name, there) or '.'} `data` has {', '.join(there)}"


def _made(recipe: Recipe) -> list[tuple[int, str]]:
    """The steps that make data: where they are, and what it is called."""
    pairs = enumerate(zip(recipe.steps, recipe.stage_ids(), strict=True))
    return [(index, name) for index, (step, name) in pairs if isinstance(step, DataStep)]


def _data_read(recipe: Recipe) -> Iterator[tuple[KeyPath, str, str]]:
    for index, step in enumerate(recipe.steps):
        for setting, name in step.references("data"):
            yield ("steps", index, setting), f"{_who(recipe, index)}`{setting}`", name
    name, judged = recipe.measures.data, len(_made(recipe)) < len(recipe.steps) or not recipe.steps
    if (recipe.data and judged) or name != type(recipe.measures).model_fields["data"].default:
        yield ("measures", "data"), "`measures.data`", name
    for name in recipe.measures.also:
        yield ("measures", "also"), "`measures.also`", name


def check_held_out(recipe: Recipe) -> Iterator[Problem]:
    """No step reads what the stages are judged on."""
    places = [(recipe.measures.data, "measures.data")]
    places += [(name, "measures.also") for name in recipe.measures.also]
    for index, step in enumerate(recipe.steps):
        for setting, name in step.references("data"):
            what = next(filter(None, (_same(recipe, name, *place) for place in places)), None)
            if what is None:
                continue
            yield Problem(
                f"{_who(recipe, index)}`{setting}` {what}: held-out data is never calibration "
                "data, a model looks better than it is on what it was fitted to. Give one of the "
                "two another dataset",
                path=("steps", index, setting),
            )


def _same(recipe: Recipe, name: str, held_out: str, where: str) -> str | None:
    """How a dataset that a step reads is one that stages are judged on, if it is."""
    source, judge = recipe.data.get(name), recipe.data.get(held_out)
    if name == held_out:
        return f"reads {name!r}, which `{where}` names"
    if judge is not None and source is not None and _overlap(source, judge):
        return f"reads {name!r}, the same rows as {held_out!r}, which `{where}` names"
    return None


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
    ids, makers = recipe.stage_ids(), {name for _, name in _made(recipe)}
    for index, step in enumerate(recipe.steps):
        for setting, name in step.references("model"):
            who, path = f"{_who(recipe, index)}`{setting}`", ("steps", index, setting)
            if is_address(name) and "@" in name.partition("#")[0]:
                text = (
                    f"{who} is an address with a name or a password in it, which reports would "
                    "show. Leave it out, and give the server's key in `server: {key: NAME}`"
                )
                yield Problem(text, path=path)
            elif is_address(name) and setting in step.served:
                if not name.partition("#")[2]:
                    text = (
                        f"{who} is {name}, which names no model. Write the server's address, # and "
                        f"the model's name there, such as {name.rstrip('/#')}#my-model"
                    )
                    yield Problem(text, path=path)
            elif (text := _lost(name, ids, index, makers)) is not None:
                yield Problem(f"{who} is {name!r}, {text}", path=path)
    reference = recipe.guard.reference
    if reference not in ("original", *ids) or reference in makers:
        earlier = ["original", *(name for name in ids if name not in makers)]
        text = f"neither the id of a step nor 'original'{nearest(reference, earlier) or '.'}"
        if reference in makers:
            text = f"the id of step {ids.index(reference) + 1}, which makes data and no model."
        text = f"`guard.reference` is {reference!r}, {text} Name one of {', '.join(earlier)}"
        yield Problem(text, path=("guard", "reference"))


def _lost(name: str, ids: list[str], before: int, makers: set[str]) -> str | None:
    """Why a name leads to no model that is there before a step; `makers` make data."""
    earlier = ["original", *(other for other in ids[:before] if other not in makers)]
    if name in earlier or name.startswith("package:"):
        return None
    choice = f"Name one of {', '.join(earlier)}, or the path of a model"
    if name in makers:
        return f"the id of step {ids.index(name) + 1}, which makes data and no model. {choice}"
    if name in ids:
        where = ids.index(name) + 1
        which = "this step itself" if where == before + 1 else f"step {where}, which comes later"
        return f"the id of {which}. {choice}"
    if exists(Path(name)):
        return None
    hint = nearest(name, earlier) or "."
    return f"neither the id of an earlier step nor an existing path{hint} {choice}"


def exists(path: Path) -> bool:
    """Whether a path is there; what cannot be a path is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def check_dips(recipe: Recipe) -> Iterator[Problem]:
    """Every stage that may dip is there, and is a model."""
    ids, makers = recipe.stage_ids(), {name for _, name in _made(recipe)}
    ids = [name for name in ids if name not in makers]
    for index, name in enumerate(recipe.guard.may_dip):
        if name not in ids:
            known = f"The stages are {', '.join(ids)}" if ids else "The recipe has no steps"
            hint = nearest(name, ids) or "."
            text = f"`guard.may_dip` names {name!r}, which is no stage{hint} {known}"
            yield Problem(text, path=("guard", "may_dip", index))


def _who(recipe: Recipe, index: int) -> str:
    return f"step {index + 1} ({recipe.steps[index].kind}): "
