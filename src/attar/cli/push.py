"""attar push: an export to a folder, or to a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="An export's folder.", show_default=False)
    ],
    to: Annotated[
        str,
        typer.Argument(
            metavar="PLACE", help="A folder, or hub:OWNER/NAME of a model hub.", show_default=False
        ),
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Let only you see a repository that is made.")
    ] = False,
) -> None:
    """Copy an export, its record and its model card to a folder or a model hub."""
    from attar.export.push import push as send

    typer.echo(f"pushed to {send(folder, to, private)}")
