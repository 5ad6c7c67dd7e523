"""attar list: the techniques there are."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated

import typer


def list_(
    family: Annotated[
        str | None,
        typer.Argument(metavar="FAMILY", help="quantize, say: only these.", show_default=False),
    ] = None,
) -> None:
    """List the techniques, each with what it does."""
    from attar.core.registry import entries, nearest
    from attar.errors import UserError

    found = entries()
    families = list(dict.fromkeys(entry.kind.partition("/")[0] for entry in found))
    if family is not None and family not in families:
        hint = nearest(family, families) or "."
        raise UserError(
            f"no family of techniques is called {family!r}{hint} There are {', '.join(families)}"
        )
    width = max((len(entry.kind) for entry in found), default=0)
    for name, entries_ in groupby(found, lambda entry: entry.kind.partition("/")[0]):
        if family not in (None, name):
            continue
        typer.secho(name, bold=True)
        for entry in entries_:
            typer.echo(f"  {entry.kind:<{width}}  {entry.summary}".rstrip())
    typer.secho("`attar show KIND` prints a technique's settings.", dim=True)
