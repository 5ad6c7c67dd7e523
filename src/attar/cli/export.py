"""attar export: an artifact in the container that an engine reads, verified there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attar.cli.options import HOME, Home

if TYPE_CHECKING:
    from attar.export.export import Exported, Wanted

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
    from attar.export.target import TARGETS

    if every == (target is not None):
        listed = "\n".join(f"  {entry.kind}: {entry.summary}" for entry in TARGETS.entries())
        raise UserError(f"name one target, or give --all. There are:\n{listed}")
    wanted = Wanted(allow_rounding=allow_rounding, dense=dense, speed=speed, threads=threads)
    if target is None:
        _all(ref, out, home, wanted)
        return
    found = one(ref, target, out, home, wanted, _say)
    show_exports([found])
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
        typer.echo(f"fastest here: {found.fastest.target}, {found.fastest.folder}")


def show_exports(exports: list[Exported]) -> None:
    """A row for each export: bytes, speed, memory, and how near its answers are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    outputs = [one.record["verified"].get("outputs", {}) for one in exports]
    near = "KL, nats" if any("kl" in each for each in outputs) else "off by"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("target", min_width=max((len(one.target) for one in exports), default=0))
    for title in ("bytes", "speed", "p50", "p95", "first", "memory", near, "ppl"):
        table.add_column(title)
    for one in exports:
        table.add_row(*_cells(one))
    Console().print(table)


def _cells(one: Exported) -> list[str]:
    from attar.present.plain import bytes_text, significant

    speed = one.speed
    rate = speed.get("tokens_per_second") or speed.get("texts_per_second")

    def told(name: str) -> str:
        figure = speed.get(name)
        return "–" if figure is None else f"{significant(figure.value, 3)} {figure.unit}"

    outputs: dict[str, Any] = one.record["verified"].get("outputs", {})
    near = outputs.get("kl", outputs.get("largest_difference"))
    perplexity = outputs.get("perplexity_engine")
    return [
        one.target,
        bytes_text(one.record["bytes"]),
        "–" if rate is None else f"{significant(rate.value, 3)} {rate.unit}",
        told("latency_p50"),
        told("latency_p95"),
        told("first_token"),
        bytes_text(speed["peak_memory"].value) if "peak_memory" in speed else "–",
        "–" if near is None else significant(near, 3),
        "–" if perplexity is None else significant(perplexity, 4),
    ]
