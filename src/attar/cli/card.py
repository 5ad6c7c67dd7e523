"""attar card: a model card of an artifact and of its exports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attar.cli.export import Ref
from attar.cli.options import HOME, Home


def card(
    ref: Ref,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it there and not to standard output."),
    ] = None,
    home: Home = HOME,
) -> None:
    """Print a model card: what a model came from, what was done to it, and what that cost."""
    from attar.engine.store import readable, write_text
    from attar.export.artifact import find_artifact
    from attar.export.card import card as write
    from attar.export.export import exports_of

    artifact = find_artifact(ref, Path(home))
    text = write(artifact, [*exports_of(artifact, Path(home)).values()])
    if out is None:
        typer.echo(text, nl=False)
        return
    instead = "name another file with --out"
    with readable(f"the card {out} cannot be written", out.absolute().parent, instead):
        write_text(out, text)
