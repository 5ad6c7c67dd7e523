"""attar prune: fewer blocks or narrower ones, healed if asked, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from attar.cli.options import HOME, Device, DryRun, Home, Language, ModelName, Name, Set, Task

PRUNED = "pruned"


def prune(
    model: ModelName,
    data: Annotated[
        Path, typer.Option("--data", metavar="PATH", help="Texts to measure by, and to heal on.")
    ],
    keep: Annotated[
        int | None, typer.Option("--keep", metavar="N", help="Blocks to keep.", min=1)
    ] = None,
    fraction: Annotated[
        float | None, typer.Option("--fraction", metavar="SHARE", help="The share to keep.")
    ] = None,
    width: Annotated[
        bool, typer.Option("--width", help="Make every block narrower, and keep all of them.")
    ] = False,
    heal: Annotated[
        int | None,
        typer.Option("--heal", metavar="N", help="Distill from the original so many steps.", min=1),
    ] = None,
    task: Task = None,
    sets: Set = None,
    name: Name = None,
    dry_run: DryRun = False,
    home: Home = HOME,
    language: Language = "en",
    device: Device = "cpu",
) -> None:
    """Take blocks away, or with --width heads, neurons and hidden channels."""
    from attar.cli.shortcut import press, start

    plain = start("prune", model, data, task, name)
    kind = "prune/width" if width else "prune/depth"
    plain["steps"] = [{kind: {"id": PRUNED, **_amount(keep, fraction, width)}}]
    if heal is not None:
        plain["steps"].append({"distill/logits": {"teacher": "original", "steps": heal}})
        plain["guard"] = {"may_dip": [PRUNED]}
    press(plain, sets, (home, language, device), dry_run)


def _amount(keep: int | None, fraction: float | None, width: bool) -> dict[str, Any]:
    """How much to keep: blocks, or a share."""
    from attar.cli.shortcut import share
    from attar.errors import UserError

    if keep is not None and width:
        raise UserError("--keep counts blocks, and --width keeps all of them. Give --fraction")
    if (keep is None) == (fraction is None):
        forms = "--fraction 0.8" if width else "--keep 24 or --fraction 0.8"
        raise UserError(f"say how much to keep, in one way: {forms}")
    return {"keep": keep} if fraction is None else {"fraction": share(fraction, "--fraction")}
