"""attar sensitivity: what each technique costs each part of a model, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from attar.cli.options import HOME, Device, Home, Language, ModelName, Name, Set, Task

if TYPE_CHECKING:
    from rich.table import Table

    from attar.engine.sensitivity import Sensitivity

TABLE = "sensitivity.tsv"
TRIED = (
    "quantize/rtn: {grid: int4-g64}",
    "quantize/rtn: {grid: int3-g64}",
    "prune/magnitude: {sparsity: 0.5}",
    "lowrank/svd: {keep: 0.8}",
)


def _by(value: str) -> str:
    if value not in ("role", "linear"):
        raise typer.BadParameter(f"{value!r} is neither role nor linear")
    return value


def sensitivity(
    model: ModelName,
    data: Annotated[
        Path,
        typer.Option("--data", metavar="PATH", help="A folder or file of texts to measure on."),
    ],
    tried: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="STEP",
            help="A step as a recipe writes it: 'quantize/rtn: {grid: int2-g64}'. May be repeated; "
            "by default rounding to 4 and 3 bits, half the weights, and a lower rank.",
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="role|linear",
            callback=_by,
            help="What is changed alone: each block's attention and MLP, or each linear.",
        ),
    ] = "role",
    sequences: Annotated[
        int, typer.Option("--sequences", metavar="N", help="Sequences to measure on.", min=1)
    ] = 8,
    length: Annotated[
        int, typer.Option("--length", metavar="N", help="Tokens in a sequence.", min=8)
    ] = 256,
    task: Task = None,
    sets: Set = None,
    name: Name = None,
    home: Home = HOME,
    language: Language = "en",
    device: Device = "cpu",
) -> None:
    """Measure what each technique costs each part of a model alone; writes a table and plots."""
    from rich.console import Console

    from attar.calibrate.rows import Calibrated
    from attar.calibrate.table import By, to_table
    from attar.cli.kept import PAGE, write_page
    from attar.cli.shortcut import checked, start
    from attar.engine.sensitivity import sensitivity as measure
    from attar.present.progress import RichProgress

    each = cast("By", by)
    plain = start("sensitivity", model, data, task, name)
    plain["steps"] = [_step(text) for text in tried or TRIED]
    recipe, _ = checked(plain, sets or ())
    with RichProgress(Console(stderr=True), language) as progress:
        rows = Calibrated(sequences=sequences, length=length)
        found = measure(recipe, home, rows, progress, device, each)
    (found.folder / TABLE).write_text(to_table(found.parts, found.divergences, each), "utf-8")
    write_page(found.report, found.folder / PAGE, language)
    console = Console()
    console.print(_table(found))
    for path in (TABLE, PAGE):
        console.print(str(found.folder / path), highlight=False, soft_wrap=True)


def _step(text: str) -> Any:
    """A step as plain data; what is no YAML is left as text, for the recipe to refuse."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _table(found: Sensitivity) -> Table:
    """The same to read, the largest of each technique marked."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    for title in ("block", "part"):
        table.add_column(title)
    for label in found.divergences:
        table.add_column(f"{found.unit}, {label}", justify="right", overflow="fold")
    largest = [max(column) for column in found.divergences.values()]
    for index, part in enumerate(found.parts):
        values = [column[index] for column in found.divergences.values()]
        cells = [
            f"[bold]{value:.4f}[/]" if value == most else f"{value:.4f}"
            for value, most in zip(values, largest, strict=True)
        ]
        table.add_row(str(part.block), part.name, *cells)
    return table
