"""attar report: what a run came to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attar.cli.options import HOME, Home, Language, RunName


def report(
    run: RunName,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write the page to this file."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    home: Home = HOME,
    language: Language = "en",
) -> None:
    """Show a run's report: a table, one HTML page, or JSON."""
    from attar.cli.kept import PAGE, REPORT, find_run, read_report, write_page

    folder = find_run(home, run)
    found = read_report(folder / REPORT)
    page = html or folder / PAGE
    if html is not None or not json:
        _check_place(page)
        write_page(found, page, language)
    if json:
        typer.echo(found.model_dump_json(indent=1))
        return
    from rich.console import Console

    from attar.present.terminal import show

    show(found, Console(), language, page.absolute())


def _check_place(page: Path) -> None:
    from attar.errors import UserError

    if page.is_dir():
        raise UserError(f"{page.absolute()} is a folder. Name a file in it: {page / 'report.html'}")
    if not page.absolute().parent.is_dir():
        raise UserError(
            f"there is no folder {page.absolute().parent} to write {page.name} into. Make it first"
        )
