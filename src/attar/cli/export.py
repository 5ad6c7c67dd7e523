"""attar export: an artifact in the container that an engine reads, verified there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attar.cli.options import HOME, Home

if TYPE_CHECKING:
    from attar.export.export import Wanted
    from attar.export.record import Exported

Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="A run's name, the beginning of an artifact's key, or a model's path.",
        show_default=False,
    ),
]


def export(
    ref: Ref,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET", help="hf, gguf, ...; none lists them.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="The folder to write; of --all, the one that holds a folder for each target.",
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every target that holds it.")] = False,
    allow_rounding: Annotated[
        bool,
        typer.Option(
            "--allow-rounding",
            help="Round a second time what the target cannot hold; the record says so.",
        ),
    ] = False,
    dense: Annotated[
        bool, typer.Option("--dense", help="Multiply two thin linears into one large one.")
    ] = False,
    speed: Annotated[bool, typer.Option(help="Time the engine in a fresh process.")] = True,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads to time with.")
    ] = None,
    home: Home = HOME,
) -> None:
    """Write an artifact for an engine: the very codes, verified there, and timed."""
    from attar.errors import UserError
    from attar.export.export import Wanted
    from attar.export.export import export as one
    from attar.export.record import in_engines
    from attar.export.target import TARGETS

    if every == (target is not None):
        listed = "\n".join(f"  {entry.kind}: {entry.summary}" for entry in TARGETS.entries())
        raise UserError(f"name one target, or give --all. There are:\n{listed}")
    wanted = Wanted(allow_rounding=allow_rounding, dense=dense, speed=speed, threads=threads)
    if target is None:
        _all(ref, out, home, wanted)
        return
    found = one(ref, target, out, home, wanted, _say)
    show_exports(in_engines(found.folder, found.record))
    typer.echo(f"written to {found.folder}")


def _say(text: str) -> None:
    typer.secho(text, err=True, dim=True)


def _all(ref: str, out: Path | None, home: str, wanted: Wanted) -> None:
    from attar.export.everything import export_all

    found = export_all(ref, out, home, wanted, _say)
    show_exports(found.exports)
    for name, reason in found.skipped.items():
        typer.secho(f"{name} was left out: {reason}", err=True)
    if found.fastest is not None:
        typer.echo(told_fastest(found.fastest))


def told_fastest(one: Exported) -> str:
    """The line that names what to take on this machine."""
    return f"fastest here: {one.target} in {one.engine}, {one.folder}"


def show_exports(exports: list[Exported]) -> None:
    """A row for each export in each engine: bytes, speed, memory, how near its answers are.

    The last column is the perplexity, or of how many texts (of a masked language model tokens) the
    engine's class is the artifact's.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rate = "texts/s" if any("texts_per_second" in one.speed for one in exports) else "tokens/s"
    near = "KL\nnats" if any("kl" in one.outputs for one in exports) else "off\nby"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    agree = "ppl" if any("perplexity_engine" in one.outputs for one in exports) else "same\n%"
    latencies = ("p50\nms", "p95\nms", "first\nms")
    for title in ("target", "engine", "bytes", rate, *latencies, "memory", near, agree):
        table.add_column(title)
    for one in exports:
        table.add_row(*_cells(one))
    Console().print(table)


def _cells(one: Exported) -> list[str]:
    from attar.export.everything import rate
    from attar.present.plain import bytes_text, significant

    def told(value: float | None, digits: int = 3) -> str:
        return "–" if value is None else significant(value, digits)

    speed = {name: figure.value for name, figure in one.speed.items()}
    same = one.outputs.get("agreement")
    return [
        one.target,
        one.engine,
        bytes_text(one.record["bytes"]),
        told(rate(one)),
        *(told(speed.get(name)) for name in ("latency_p50", "latency_p95", "first_token")),
        bytes_text(speed["peak_memory"]) if "peak_memory" in speed else "–",
        told(one.outputs.get("kl", one.outputs.get("largest_difference"))),
        told(one.outputs.get("perplexity_engine", None if same is None else 100 * same), 4),
    ]
