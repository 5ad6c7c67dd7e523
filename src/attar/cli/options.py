"""The arguments and options that commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

HOME = ".attar"
HOME_VARIABLE = "ATTAR_HOME"


def _language(value: str) -> str:
    """The language, refused at once and not after an hour of work."""
    from attar.present.words import Words

    return Words(value).language


def _task(value: str | None) -> str | None:
    """One of the tasks, told apart before anything is read."""
    from attar.core.step import Task

    if value is not None and value not in get_args(Task):
        raise typer.BadParameter(f"{value!r} is none of {', '.join(get_args(Task))}")
    return value


Home = Annotated[
    str,
    typer.Option(
        "--home",
        envvar=HOME_VARIABLE,
        metavar="DIR",
        help="Where artifacts, runs and measurements are kept.",
    ),
]
Language = Annotated[
    str,
    typer.Option("--language", metavar="en|zh", callback=_language, help="The report's language."),
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="Where to compute: cpu, cuda, cuda:1.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set one value over the recipe's: steps.0.sequences=8, seed=3. May be repeated.",
    ),
]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="What to call the run.")]
RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe's YAML file.", show_default=False)
]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's name, or the path of its folder.", show_default=False
    ),
]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a hub name, a GGUF file, or package:NAME.",
        show_default=False,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="TASK",
        callback=_task,
        help="causal-lm, masked-lm, classification, embedding or contrastive; the config's own by "
        "default.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the recipe on standard output and do nothing.")
]
