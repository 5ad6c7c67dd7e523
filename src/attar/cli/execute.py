"""Running a recipe before the user's eyes: progress, the table, and where everything is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from attar.cli.launched import leads

if TYPE_CHECKING:
    from attar.core.recipe import Recipe
    from attar.core.report import Report
    from attar.engine.run import Run

_MODEL = {"en": "Model:", "zh": "模型："}


def execute(recipe: Recipe, home: str, language: str, device: str) -> Run:
    """Run a recipe, print its table, and write its page beside its report.

    Raises what the run raises; where the guard refused a stage, the table comes first.
    """
    from rich.console import Console

    from attar.cli.kept import REPORT, read_report, run_folder
    from attar.engine.run import run
    from attar.errors import GuardFailed
    from attar.present.progress import RichProgress

    with RichProgress(Console(stderr=True), language) as progress:
        try:
            finished = run(recipe, home, progress, device, os.environ.get)
        except GuardFailed:
            folder = run_folder(home, recipe.name)
            present(read_report(folder / REPORT), folder, language)
            raise
    present(finished.report, finished.folder, language)
    return finished


def present(report: Report, folder: Path, language: str) -> None:
    """Print a run's table and where its files are; writes its page and its card.

    One process does.
    """
    if not leads():
        return
    from rich.console import Console
    from rich.text import Text

    from attar.cli.kept import PAGE, REPORT, write_card, write_page
    from attar.present.terminal import show
    from attar.present.words import Words

    console = Console()
    page = folder / PAGE
    write_page(report, page, language)
    show(report, console, language, page)
    lines = [Words(language)("saved", path=folder / REPORT)]
    if report.finished:
        lines.append(f"{_MODEL[language]} {folder / 'model'}")
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    write_card(report, folder)
