"""Runs that are kept under the home folder: their names, their reports, their pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attar.errors import StoreError, UserError

if TYPE_CHECKING:
    from attar.core.report import Report

REPORT = "report.json"
PAGE = "report.html"


def run_folder(home: str, name: str) -> Path:
    """Where the run of this name is kept, or would be."""
    return Path(home).expanduser().absolute() / "runs" / name


def run_names(home: str) -> list[str]:
    """The runs that have a report."""
    found = Path(home).expanduser().glob(f"runs/*/{REPORT}")
    return sorted(path.parent.name for path in found)


def find_run(home: str, name: str) -> Path:
    """The folder of a run, by its name or its path. Raises UserError, with the nearest name."""
    from attar.core.registry import nearest

    known = run_names(home)
    if name in known:
        return run_folder(home, name)
    path = Path(name).expanduser().absolute()
    if path.name == REPORT:
        path = path.parent
    if (path / REPORT).is_file():
        return path
    there = Path(home).expanduser().absolute() / "runs"
    if not known:
        raise UserError(
            f"there is no run {name!r}: {there} holds none. `attar run RECIPE` makes one, and "
            "--home names another folder"
        )
    hint = nearest(name, known) or "."
    raise UserError(f"there is no run {name!r} in {there}{hint} There are {', '.join(known)}")


def read_report(path: Path) -> Report:
    """A run's report. Raises StoreError where it is damaged."""
    from pydantic import ValidationError

    from attar.core.report import Report

    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError:
        raise StoreError(
            f"{path} is damaged or of another version of Attar. Run the recipe again: what is "
            "made and measured is kept, and only the report is written anew"
        ) from None


def write_page(report: Report, path: Path, language: str) -> None:
    """Write a report as one HTML file."""
    from attar.engine.store import readable, write_text
    from attar.present.html import page

    text = page(report, language)
    with readable(f"the page {path} cannot be written", path):
        write_text(path, text)


def write_card(report: Report, folder: Path) -> None:
    """Write the card of the model that a run ended with beside its report; says so if it cannot.

    What another run of this name left is gone either way.
    """
    import typer

    from attar.engine.store import write_text
    from attar.errors import AttarError
    from attar.export.artifact import find_artifact
    from attar.export.card import CARD, card

    try:
        (folder / CARD).unlink(missing_ok=True)
        if report.finished:
            write_text(folder / CARD, card(find_artifact(str(folder), folder.parent.parent)))
    except (AttarError, OSError) as error:
        typer.secho(f"the card {folder / CARD} cannot be written: {error}", err=True)
