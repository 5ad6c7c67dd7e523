"""Messages on standard error, and short facts on standard output."""

from __future__ import annotations

from collections.abc import Mapping

import typer

from attar.errors import AttarError, ProblemsError


def tell(text: str, mark: str = "") -> None:
    """Print one message on standard error, `error:` or `warning:` in front of it."""
    from attar.present.plain import clean

    if mark:
        color = "red" if mark == "error" else "yellow"
        typer.secho(f"{mark}: ", err=True, nl=False, fg=color, bold=True)
    typer.echo(clean(text), err=True)


def problems_text(error: AttarError) -> str:
    """What an error says; of several mistakes, each on a line of its own."""
    if not isinstance(error, ProblemsError) or len(error.problems) < 2:
        return str(error)
    lines = [str(problem).replace("\n", "\n    ") for problem in error.problems]
    return "\n  ".join([f"{len(lines)} things are wrong, and nothing was done:", *lines])


def print_facts(facts: Mapping[str, str]) -> None:
    """Print names and what is known of them, a line each, never folded: paths are copied."""
    width = max(map(len, facts), default=0)
    for name, text in facts.items():
        first, *more = text.splitlines() or [""]
        typer.secho(f"{name:<{width}}  ", bold=True, nl=False)
        typer.echo(first)
        for line in more:
            typer.echo(" " * (width + 2) + line)
