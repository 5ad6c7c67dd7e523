"""What the one-line commands share: the recipe that they stand for is printed, then run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from attar.cli.launched import leads
from attar.errors import RecipeError, UserError

if TYPE_CHECKING:
    from attar.core.recipe import Recipe
    from attar.engine.run import Run

_INTRODUCTION = "# The recipe that this command stands for; --dry-run prints it alone."


def start(
    command: str, model: str, data: Path | None, task: str | None, name: str | None
) -> dict[str, Any]:
    """The recipe's beginning: its name, model, task and data."""
    plain: dict[str, Any] = {"name": name or f"{command}-{_slug(model)}", "model": absolute(model)}
    if task is not None:
        plain["task"] = task
    if data is not None:
        plain["data"] = absolute(str(data))
    return plain


def press(
    plain: dict[str, Any],
    sets: Sequence[str] | None,
    place: tuple[str, str, str],
    dry_run: bool,
) -> Run | None:
    """Print the recipe, and run it unless `dry_run`; `place` is home, language and device."""
    import yaml

    from attar.cli.execute import execute

    recipe, shown = checked(plain, sets or ())
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    if dry_run:
        typer.echo(text, nl=False)
        return None
    if leads():
        typer.secho(_INTRODUCTION, err=True)
        typer.echo(text, err=True)
    return execute(recipe, *place)


def checked(plain: dict[str, Any], sets: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe, and its plain data with the values of --set in it; every mistake at once."""
    from attar.core.overrides import override
    from attar.core.recipe_file import build

    result = override(plain, sets)
    try:
        recipe = build(result.plain)
    except RecipeError as error:
        raise RecipeError([*result.problems, *error.problems]) from None
    if result.problems:
        raise RecipeError(result.problems)
    return recipe, result.plain


def share(value: float, option: str) -> float:
    """A share that an option gives: above 0 and at most 1."""
    if not 0 < value <= 1:
        raise UserError(f"{option} is {value:g}; give the share to keep, above 0 and at most 1")
    return value


def absolute(path: str) -> str:
    """A path, absolute where it is one, so that the recipe holds anywhere; hub:NAME stays."""
    there = Path(path).expanduser()
    return str(there.absolute()) if there.exists() else path


def _slug(model: str) -> str:
    """The last part of a model's name, as far as a run may be called that."""
    word = re.split(r"[/:\\]", model.rstrip("/"))[-1].removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", word).strip("-.") or "model"
