"""attar distill: a smaller student made from its teacher and taught by it, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from attar.cli.options import HOME, Device, DryRun, Home, Language, ModelName, Name, Set, Task

STUDENT = "student"


def distill(
    teacher: ModelName,
    data: Annotated[
        Path,
        typer.Option("--data", metavar="PATH", help="A folder or file to train on and judge by."),
    ],
    student: Annotated[
        float,
        typer.Option(
            "--student",
            metavar="SHARE",
            help="How large the student is, as a share of the teacher.",
        ),
    ] = 0.5,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Training steps.", min=1)
    ] = None,
    task: Task = None,
    sets: Set = None,
    name: Name = None,
    dry_run: DryRun = False,
    home: Home = HOME,
    language: Language = "en",
    device: Device = "cpu",
) -> None:
    """Narrow a model to a share of its size, and teach the result by the original."""
    from attar.cli.shortcut import press, share, start

    plain = start("distill", teacher, data, task, name)
    taught: dict[str, Any] = {"teacher": "original"}
    if steps is not None:
        taught["steps"] = steps
    plain["steps"] = [{"distill/logits": taught}]
    if share(student, "--student") < 1:
        plain["steps"].insert(0, {"prune/width": {"id": STUDENT, "fraction": student}})
        plain["guard"] = {"may_dip": [STUDENT]}
    press(plain, sets, (home, language, device), dry_run)
