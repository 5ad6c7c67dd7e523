"""What the steps of a recipe ask of the files and models that they name."""

from __future__ import annotations

from collections.abc import Iterator

from attar.core.recipe import ModelSource, Recipe
from attar.core.step import DataStep, Task, is_address
from attar.data.files import located
from attar.engine.inputs import Inputs
from attar.errors import UserError
from attar.models.families import vocabulary_of
from attar.models.load import config_of, task_of
from attar.models.source import resolve


def strangers(recipe: Recipe, inputs: Inputs) -> list[str]:
    """Models that a step learns from, and whose tokens cannot be the original's."""
    problems: list[str] = []
    own = vocabulary_of(inputs.config)
    ids = {"original", *recipe.stage_ids()}
    for number, step in enumerate(recipe.steps, 1):
        for setting, path in step.references("model"):
            if path in ids or step.any_vocabulary or is_address(path):
                continue
            source = ModelSource(path=path)
            theirs = vocabulary_of(config_of(resolve(source), source))
            if theirs != own:
                problems.append(
                    f"step {number} ({step.kind}): `{setting}` {path} has a vocabulary of {theirs} "
                    f"tokens, and {recipe.model.path} one of {own}, so their predictions cannot "
                    "be compared position by position. Take one of the same family, with the same "
                    "tokenizer, or learn by distill/cross-tokenizer"
                )
    return problems


def unread(recipe: Recipe, inputs: Inputs) -> Iterator[str]:
    """Files that are not there, and models made for another task than is asked of them."""
    models = {"original", *recipe.stage_ids()}
    for number, step in enumerate(recipe.steps, 1):
        where = f"step {number} ({step.kind})"
        for setting, path in step.references("file"):
            if (text := _missing(path)) is not None:
                yield f"{where}: `{setting}`: {text}"
        for setting, name in step.references("model"):
            if not isinstance(step, DataStep) or is_address(name):
                continue
            asked = step.asks().get(setting, ())
            wanted = asked[0] if len(asked) == 1 else inputs.task
            if wanted == "classification" and name == "original" and inputs.fresh_head:
                yield (
                    f"{where}: `{setting}` is the original, whose classifier's head is drawn at "
                    "random here. Fine-tune it first (adapt/full), and name that stage"
                )
            if asked and wanted not in asked:
                yield (
                    f"{where}: `{setting}` must be a model for {' or '.join(asked)}, and those "
                    f"of this recipe are for {wanted}. Leave it out, or give the recipe another "
                    "`task`"
                )
            elif not asked or (wanted == inputs.task and name in models):
                continue
            elif (text := _unfit(name, wanted, recipe, inputs)) is not None:
                yield f"{where}: `{setting}` {text}"


def _missing(path: str) -> str | None:
    """Why a file cannot be read; of a package, what to install."""
    try:
        place = located(path)
    except UserError as error:
        return str(error)
    if place.exists():
        return None
    return f"no such file or folder: {place.absolute()}. Check the path"


def _unfit(name: str, wanted: Task, recipe: Recipe, inputs: Inputs) -> str | None:
    """Why a model is not for the task that is asked of it."""
    if name in recipe.stage_ids():
        return (
            f"is the stage {name!r}, a model for {inputs.task}, and one for {wanted} is needed. "
            "Give the path of one"
        )
    source = recipe.model if name == "original" else ModelSource(path=name)
    files = resolve(source)
    try:
        found = task_of(config_of(files, source), files)
    except UserError as error:
        return f"is no model for {wanted}: {error}"
    if found == wanted:
        return None
    return f"{name} is a model for {found}, and one for {wanted} is needed. Give the path of one"
