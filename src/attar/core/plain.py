"""A recipe's plain data: its shorthands taken apart, its steps read one by one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, cast

from pydantic import ValidationError

from attar.core import registry
from attar.core.explain import explain, show
from attar.core.step import Step
from attar.errors import Problem, RecipeError, UserError

SPLITS = ("train", "dev", "test")


def stage_ids(steps: Iterable[tuple[str, str | None]]) -> list[str]:
    """The id of each step, from its kind and the id that it was given."""
    pairs = list(steps)
    ids: list[str] = []
    taken = {given for _, given in pairs if given is not None} | {"original"}
    for kind, given in pairs:
        name = given
        if name is None:
            word, count = kind.rpartition("/")[2], 2
            name = word
            while name in taken:
                name, count = f"{word}-{count}", count + 1
            taken.add(name)
        ids.append(name)
    return ids


def is_shorthand(data: Any) -> bool:
    """Whether `data` is one path, or one source, that stands for train, dev and test."""
    if isinstance(data, Mapping):
        return "path" in data and not isinstance(data["path"], Mapping)
    return isinstance(data, str | os.PathLike)


def expand_data(data: Any) -> Any:
    """`data: PATH` and `data: {path: ...}` stand for train, dev and test of that path."""
    if not is_shorthand(data):
        return data
    source = cast("Mapping[str, Any]", data) if isinstance(data, Mapping) else {"path": data}
    return {split: {**source, "split": split} for split in SPLITS}


def split_step(step: Any) -> tuple[str, Any] | None:
    """The kind and the settings of a step in plain data; None where it is not written as one."""
    if isinstance(step, str):
        return step, {}
    if isinstance(step, Mapping) and len(cast("Mapping[Any, Any]", step)) == 1:
        ((kind, settings),) = cast("Mapping[Any, Any]", step).items()
        if isinstance(settings, str) and "/" not in str(kind):
            return f"{kind}/{settings}", {}  # heal: auto
        return str(kind), {} if settings is None else settings
    return None


def misplaced_split(plain: Mapping[str, Any]) -> list[Problem]:
    """Refuse a `split` in the one source that stands for all three."""
    data = plain.get("data")
    if not is_shorthand(data) or not isinstance(data, Mapping) or "split" not in data:
        return []
    text = (
        "`data.split` has no place where one source stands for train, dev and test. Leave it "
        "out, or give each dataset a name with its own path and split below it"
    )
    return [Problem(text, path=("data", "split"))]


def data_as_one(problems: list[Problem]) -> list[Problem]:
    """The mistakes of a source that stands for three datasets, each of them once."""
    found: dict[Problem, None] = {}
    for problem in problems:
        message, path = problem.message, problem.path
        if path[:1] == ("data",) and len(path) > 1:
            message, path = message.replace(f"data.{path[1]}.", "data."), ("data", *path[2:])
        found[Problem(message, path=path)] = None
    return list(found)


def read_steps(steps: Any) -> tuple[Any, list[Problem]]:
    """The steps that can be read, and what is wrong with the others."""
    if not isinstance(steps, list | tuple):
        kind = steps if isinstance(steps, str) else "quantize/rtn"
        text = (
            f"`steps` must be a list, got {show(steps)}. A list of one step is written "
            f"steps: [{kind}], or below `steps:` on a line of its own `- {kind}: {{...}}`"
        )
        return (), [Problem(text, path=("steps",))]
    found: list[Step] = []
    problems: list[Problem] = []
    for index, step in enumerate(cast("list[Any]", steps)):
        try:
            found.append(step if isinstance(step, Step) else _step(step, index))
        except RecipeError as error:
            problems += error.problems
    return tuple(found), problems


def _step(plain: Any, index: int) -> Step:
    pair = split_step(plain)
    if pair is None:
        text = f"step {index + 1} {_unlike_a_step(plain)}"
        raise RecipeError([Problem(text, path=("steps", index))])
    kind, settings = pair
    who = f"step {index + 1} ({kind}): "
    try:
        technique = registry.find(kind)
    except UserError as error:
        raise RecipeError([Problem(f"step {index + 1}: {error}", path=("steps", index))]) from None
    if not isinstance(settings, Mapping):
        text = f"{who}its settings must be a mapping of keys to values, got {show(settings)}"
        raise RecipeError([Problem(text, path=("steps", index))])
    try:
        return technique.model_validate(settings)
    except ValidationError as error:
        problems = explain(error, technique, settings, at=("steps", index), who=who)
        raise RecipeError(problems) from None


def _unlike_a_step(plain: Any) -> str:
    if not isinstance(plain, Mapping) or not plain:
        return (
            f"must be a technique with its settings, got {show(plain)}. Write - quantize/rtn: {{}}"
        )
    keys = [str(key) for key in cast("Mapping[Any, Any]", plain)]
    kind = next((key for key in keys if "/" in key), "quantize/rtn")
    others = ", ".join(key for key in keys if key != kind)
    return (
        f"must have one key, its technique, and has {', '.join(keys)}. Indent the settings "
        f"({others}) below the technique, or write - {kind}: {{key: value}}"
    )
