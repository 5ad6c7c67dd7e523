"""attar quantize: fewer bits for each weight, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attar.cli.options import HOME, Device, DryRun, Home, Language, ModelName, Name, Set, Task

FLOAT = "float"
METHODS = ("gptq", "rtn")


def quantize(
    model: ModelName,
    grid: Annotated[
        str, typer.Option("--grid", help="The numbers a weight may take: int4-g64, q4_0, ...")
    ] = "int4-g64",
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="PATH", help="Texts to calibrate on and to judge by."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="gptq|rtn", help="gptq with data, rtn without."),
    ] = None,
    embeddings: Annotated[
        str, typer.Option("--embeddings", help="The grid of the embedding table; float leaves it.")
    ] = "int8-channel",
    task: Task = None,
    sets: Set = None,
    name: Name = None,
    dry_run: DryRun = False,
    home: Home = HOME,
    language: Language = "en",
    device: Device = "cpu",
) -> None:
    """Round a model's weights to a grid; without --data its quality is not judged."""
    from attar.cli.shortcut import press, start

    settings = {"grid": grid}
    if embeddings != FLOAT:
        settings["embeddings"] = embeddings
    plain = start("quantize", model, data, task, name)
    plain["steps"] = [{f"quantize/{_method(method, data)}": settings}]
    press(plain, sets, (home, language, device), dry_run)


def _method(method: str | None, data: Path | None) -> str:
    from attar.core.registry import nearest
    from attar.errors import UserError

    if method is None:
        return "gptq" if data is not None else "rtn"
    if method not in METHODS:
        hint = nearest(method, list(METHODS)) or "."
        raise UserError(f"--method is {method!r}{hint} It takes {' or '.join(METHODS)}")
    if method == "gptq" and data is None:
        raise UserError("--method gptq calibrates on texts. Add --data PATH, or take --method rtn")
    return method
