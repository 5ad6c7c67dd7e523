"""The table of a report, in whichever layout shows every number whole at the console's width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from attar.core.report import StageReport
from attar.present import figures
from attar.present.plain import duration
from attar.present.words import Words

MARKS = {"good": "✓", "dip": "~", "outside": "✗", "unjudged": "–"}
STYLES = {"good": "green", "dip": "yellow", "outside": "bold white on red", "unjudged": "dim"}
_ENDLESS = 10_000


@dataclass(frozen=True)
class _Line:
    """One measure: its heading, and a text for every stage."""

    heading: Text
    texts: tuple[Text, ...]
    right: bool = True

    def joined(self) -> _Line:
        """The same with its heading on one line."""
        return _Line(Text(" ").join(self.heading.split("\n")), self.texts, self.right)


def verdict_text(stage: StageReport, words: Words) -> Text:
    """A stage's verdict with its mark; the original has none to show."""
    status = stage.verdict.status
    if stage.parent is None and status == "unjudged":
        return Text("–", style="dim")
    return Text(f"{MARKS[status]} {words(status)}", style=STYLES[status])


def stages_table(stages: Sequence[StageReport], console: Console, words: Words) -> RenderableType:
    """The widest layout that fits the console without cutting a number."""
    for table in _candidates(stages, words):
        if _width(table, console) <= console.width:
            return table
    return _stacked(stages, words)


def _candidates(stages: Sequence[StageReport], words: Words) -> Iterator[RenderableType]:
    whole, broken = (_lines(stages, words, broken) for broken in (False, True))
    names = [Text(figures.stage_name(stage, words), style="bold") for stage in stages]
    yield _across(names, whole, words)
    yield _across(names, broken, words)
    yield _down(names, [line.joined() for line in whole], words)
    yield _down(names, broken, words)
    for count in range(len(stages) - 1, 1, -1):
        yield _in_parts(names, broken, words, count)


def _width(table: RenderableType, console: Console) -> int:
    options = console.options.update(width=_ENDLESS)
    return Measurement.get(console, options, table).maximum


def _lines(stages: Sequence[StageReport], words: Words, broken: bool) -> list[_Line]:
    lines: list[_Line] = []
    for name in figures.columns(stages):
        heading = Text(figures.label(name, words))
        if unit := figures.unit_label(name, stages, words):
            heading.append(f"\n{unit}", style="dim")
        lines.append(_Line(heading, tuple(figure_text(stage, name, broken) for stage in stages)))
    times = tuple(_time(stage, words, broken) for stage in stages)
    if any(times):
        lines.append(_Line(Text(words("time")), times))
    verdicts = tuple(verdict_text(stage, words) for stage in stages)
    lines.append(_Line(Text(words("verdict")), verdicts, right=False))
    return lines


def figure_text(stage: StageReport, name: str, broken: bool) -> Text:
    """A stage's figure with its interval beside it, or `broken` onto a line of its own."""
    cell = figures.cell(stage, name)
    if cell is None:
        return Text("–", style="dim")
    text = Text(cell.marked)
    if cell.interval:
        text.append(("\n" if broken else " ") + cell.interval, style="dim")
    return text


def _time(stage: StageReport, words: Words, broken: bool) -> Text:
    text = Text("" if stage.seconds is None else duration(stage.seconds))
    if stage.cached:
        text.append(("\n" if broken and text else " ") + words("cached"), style="cyan")
    return text


def _across(names: Sequence[Text], lines: Sequence[_Line], words: Words) -> Table:
    """Rows are stages."""
    table = _empty(words("stage"))
    for line in lines:
        table.add_column(line.heading, no_wrap=True, justify="right" if line.right else "left")
    for row, name in enumerate(names):
        table.add_row(name, *(line.texts[row] for line in lines))
    return table


def _down(names: Sequence[Text], lines: Sequence[_Line], words: Words) -> Table:
    """Rows are measures."""
    table = _empty(words("measure"))
    for name in names:
        table.add_column(name, no_wrap=True, justify="right")
    for line in lines:
        table.add_row(line.heading, *line.texts)
    return table


def _in_parts(
    names: Sequence[Text], lines: Sequence[_Line], words: Words, count: int
) -> RenderableType:
    """Rows are measures; so many stages at a time, the original at the left of each part."""
    parts: list[RenderableType] = []
    for start in range(1, len(names), count - 1):
        if parts:
            parts.append(Text())
        picked = [0, *range(start, min(start + count - 1, len(names)))]
        some = [_Line(line.heading, tuple(line.texts[i] for i in picked)) for line in lines]
        parts.append(_down([names[i] for i in picked], some, words))
    return Group(*parts)


def _empty(corner: str) -> Table:
    # A gap of two, so that as many stages as can be stand side by side.
    table = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
        show_edge=False,
        padding=(0, 0, 0, 1),
    )
    table.add_column(corner, no_wrap=True)
    return table


def _stacked(stages: Sequence[StageReport], words: Words) -> RenderableType:
    """A short list for each stage; what is still too wide folds, and is never cut."""
    parts: list[RenderableType] = []
    for index, stage in enumerate(stages):
        name = Text(figures.stage_name(stage, words), style="bold")
        parts.append(Text("  ").join([name, verdict_text(stage, words)]))
        rows = Table.grid(padding=(0, 1))
        rows.add_column(overflow="fold")
        rows.add_column(overflow="fold")
        for line in _lines(stages, words, broken=False)[:-1]:
            rows.add_row(line.joined().heading, line.texts[index])
        parts.append(Padding(rows, (0, 0, 1, 2)))
    return Group(*parts)
