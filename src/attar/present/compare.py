"""Two runs side by side: the settings that differ, and every figure with its ratio."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attar.core.report import Figure, Report, StageReport
from attar.present import figures
from attar.present.plain import clean, flat, ratio_text, value_text
from attar.present.table import figure_text
from attar.present.words import Words

_ABSENT = object()


def diff(left: Report, right: Report, console: Console, language: str = "en") -> None:
    """Print what differs between two runs, stage by stage."""
    words = Words(language)
    names = (clean(left.name), clean(right.name))
    console.print()
    console.print(Text(words("diff", left=names[0], right=names[1]), style="bold"))
    recipes = [{k: v for k, v in run.recipe.items() if k != "steps"} for run in (left, right)]
    shown = _settings(words("diff.recipe"), recipes[0], recipes[1], names, console, words)
    pairs = _pairs(left, right)
    for one, other in pairs:
        shown = _stage(one, other, names, console, words) or shown
    if not shown:
        console.print(Text(words("diff.same")))
    elif any(one and other for one, other in pairs):
        console.print()
        console.print(Text(words("diff.legend"), style="dim"))


def _pairs(left: Report, right: Report) -> list[tuple[StageReport | None, StageReport | None]]:
    lefts = {stage.id: stage for stage in left.stages}
    rights = {stage.id: stage for stage in right.stages}
    ids = list(lefts)
    # A stage of the right run alone goes after the stage that it follows there.
    previous = None
    for stage in right.stages:
        if stage.id not in lefts:
            ids.insert(0 if previous is None else ids.index(previous) + 1, stage.id)
        previous = stage.id
    return [(lefts.get(name), rights.get(name)) for name in ids]


def _stage(
    left: StageReport | None,
    right: StageReport | None,
    names: tuple[str, str],
    console: Console,
    words: Words,
) -> bool:
    either = left or right
    if either is None:
        return False
    title = f"{figures.stage_name(either, words)}  {clean(either.kind)}"
    if left is None or right is None:
        only = words("diff.only", run=names[0] if right is None else names[1])
        console.print()
        console.print(Text.assemble((title, "bold"), "  ", (only, "yellow")))
        return True
    if left.settings == right.settings and left.figures == right.figures:
        console.print()
        console.print(Text.assemble((title, "bold"), "  ", (words("diff.same_stage"), "dim")))
        return False
    kinds = [{"kind": stage.kind} | flat(stage.settings) for stage in (left, right)]
    settings = _settings(title, kinds[0], kinds[1], names, console, words)
    _figures("" if settings else title, left, right, names, console, words)
    return True


def _settings(
    title: str,
    left: dict[str, Any],
    right: dict[str, Any],
    names: tuple[str, str],
    console: Console,
    words: Words,
) -> bool:
    lefts, rights = flat(left), flat(right)
    differing = [
        name
        for name in dict.fromkeys([*lefts, *rights])
        if lefts.get(name, _ABSENT) != rights.get(name, _ABSENT)
    ]
    if not differing:
        return False
    table = _table(title, words("diff.setting"), names, "left")
    for name in differing:
        pair = (values.get(name, _ABSENT) for values in (lefts, rights))
        shown = [
            Text(words("diff.unset"), style="dim") if v is _ABSENT else Text(value_text(v))
            for v in pair
        ]
        table.add_row(Text(clean(name)), *shown)
    console.print(table)
    return True


def _figures(
    title: str,
    left: StageReport,
    right: StageReport,
    names: tuple[str, str],
    console: Console,
    words: Words,
) -> None:
    table = _table(title, words("diff.figure"), names, "right")
    table.add_column(words("diff.ratio"), justify="right", no_wrap=True)
    for name in figures.columns((left, right)):
        texts = [figure_text(stage, name, console.width < 90) for stage in (left, right)]
        ratio = _ratio(name, left.figures.get(name), right.figures.get(name))
        table.add_row(Text(figures.label(name, words)), *texts, ratio)
    console.print(table)


def _ratio(name: str, left: Figure | None, right: Figure | None) -> Text:
    ratio = figures.ratio(right, left)
    if ratio is None or left is None or right is None:
        return Text("–", style="dim")
    style, kind = "", figures.kind(name)
    if figures.apart(left, right) and (
        kind in figures.HIGHER_IS_BETTER or kind in figures.LOWER_IS_BETTER
    ):
        better = (ratio > 1) == (kind in figures.HIGHER_IS_BETTER)
        style = "green" if better else "red"
    return Text(f"{ratio_text(ratio)}×", style=style)


def _table(title: str, corner: str, names: tuple[str, str], justify: str) -> Table:
    table = Table(
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
    )
    table.add_column(corner, overflow="fold")
    for name in names:
        if justify == "right":
            table.add_column(Text(name), justify="right", overflow="fold", min_width=16)
        else:
            table.add_column(Text(name), overflow="fold", min_width=12)
    return table
