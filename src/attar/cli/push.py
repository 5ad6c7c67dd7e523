"""attar push: an export or an artifact to a folder, or to a hub."""

from __future__ import annotations

from typing import Annotated

import typer

from attar.cli.options import HOME, Home


def push(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF",
            help="An export's folder, a run's name, or the key of an artifact.",
            show_default=False,
        ),
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
    home: Home = HOME,
) -> None:
    """Copy an export or an artifact, with its model card, to a folder or a model hub."""
    from attar.export.push import push as send

    typer.echo(f"pushed to {send(ref, to, private, home)}")
