"""attar bench: the exports of an artifact timed again, side by side."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from attar.cli.export import Ref, show_exports, told_fastest
from attar.cli.options import HOME, Home


def bench(
    ref: Ref,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads to time with.")
    ] = None,
    home: Home = HOME,
) -> None:
    """Time an artifact's exports, or one export's folder, in every engine of this machine.

    Exits with 1 where nothing was timed.
    """
    from attar.export.everything import time_again

    say = partial(typer.secho, err=True, dim=True)
    done = time_again(ref, Path(home), threads, say)
    if done.exports:
        show_exports(done.exports)
    for target, reason in done.skipped.items():
        typer.secho(f"{target} was left out: {reason}", err=True)
    if done.fastest is not None:
        typer.echo(told_fastest(done.fastest))
    if not done.exports:
        raise typer.Exit(1)
