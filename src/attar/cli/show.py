"""attar show: a technique, a run, an artifact, a recipe or a model, by its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attar.cli.options import HOME, Home, Language

if TYPE_CHECKING:
    from attar.engine.store import Store

_KEY = re.compile(r"[0-9a-f]{2,24}")


def show(
    thing: Annotated[
        str,
        typer.Argument(
            metavar="THING",
            help="A technique (quantize/gptq), a run's name, the beginning of an artifact's key, "
            "a recipe's file, or a model (folder, GGUF file, package:NAME).",
            show_default=False,
        ),
    ],
    home: Home = HOME,
    language: Language = "en",
) -> None:
    """Show a technique's settings, a run, an artifact, a recipe with its defaults, or a model."""
    from attar.cli.kept import run_names
    from attar.core.registry import kinds

    if thing in kinds():
        from attar.cli.show_technique import show_technique

        show_technique(thing)
    elif thing in run_names(home):
        _run(home, thing, language)
    elif _is_recipe(thing):
        _recipe(Path(thing))
    elif _is_model(thing):
        from attar.cli.show_model import show_model

        show_model(thing)
    else:
        _artifact(home, thing)


def _run(home: str, name: str, language: str) -> None:
    from rich.console import Console

    from attar.cli.kept import PAGE, REPORT, find_run, read_report
    from attar.present.terminal import show as present

    folder = find_run(home, name)
    page = folder / PAGE
    report = read_report(folder / REPORT)
    present(report, Console(), language, page if page.exists() else folder / REPORT)


def _is_recipe(thing: str) -> bool:
    return thing.endswith((".yaml", ".yml"))


def _recipe(path: Path) -> None:
    """The recipe as it will be run: every value there, defaults too."""
    import yaml

    from attar.core.recipe_file import read

    recipe = read(path)
    plain = recipe.model_dump(mode="json")
    ids = recipe.stage_ids()
    plain["steps"] = [
        {step.kind: {"id": name, **step.settings()}}
        for step, name in zip(recipe.steps, ids, strict=True)
    ]
    typer.echo(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), nl=False)


def _is_model(thing: str) -> bool:
    return thing.startswith("package:") or Path(thing).expanduser().exists()


def _artifact(home: str, thing: str) -> None:
    from attar.cli.show_artifact import show_artifact
    from attar.engine.store import Store

    store = Store(Path(home))
    if _KEY.fullmatch(thing) and _begins_a_key(thing, store):
        show_artifact(store, store.find(thing))
        return
    _unknown(store, home, thing)


def _begins_a_key(thing: str, store: Store) -> bool:
    keys = store.keys()
    return any(key.startswith(thing) for key in keys)


def _unknown(store: Store, home: str, thing: str) -> None:
    """Say where was looked, and what is near."""
    from difflib import get_close_matches

    from attar.cli.kept import run_names
    from attar.core.registry import kinds, nearest
    from attar.errors import UserError

    runs, keys = run_names(home), store.keys()
    close = get_close_matches(thing, keys, n=1, cutoff=0.6)
    hint = nearest(thing, [*kinds(), *runs])
    if close and (not hint or _KEY.fullmatch(thing)):
        hint = f"; did you mean {close[0]!r}?"
    raise UserError(
        f"nothing is called {thing!r}{hint or '.'} Looked for a technique (`attar list`), a run or "
        f"an artifact's key in {store.home} ({len(runs)} runs, {len(keys)} artifacts), a recipe's "
        f".yaml file, and a model's folder at {Path(thing).expanduser().absolute()}"
    )
