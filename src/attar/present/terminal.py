"""A report in the terminal: the table, the verdicts, the warnings, the samples."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from attar.core.report import Report, Sample, StageReport
from attar.present import figures
from attar.present.compare import diff
from attar.present.plain import clean
from attar.present.progress import RichProgress
from attar.present.table import MARKS, stages_table
from attar.present.words import Words

__all__ = ["RichProgress", "diff", "show"]

_COLUMN = 38  # a narrower column of prose is tiring to read


def show(
    report: Report, console: Console, language: str = "en", path: str | Path | None = None
) -> None:
    """Print the report; `path` is where it is kept, as a file to open."""
    words = Words(language)
    console.print()
    title = Text.assemble((clean(report.name), "bold"), "  ", figures.headline(report, words))
    console.print(title)
    if not report.finished:
        console.print(Text(words("unfinished"), style="yellow"))
    console.print()
    console.print(stages_table(report.stages, console, words))
    _footnotes(report, console, words)
    _dips(report, console, words)
    _samples(report, console, words)
    _warnings(report, console, words)
    _refusals(report, console, words)
    if path is not None:
        console.print()
        # Whole on one line, so that a terminal can open it and a person can copy it.
        console.print(Text(words("saved", path=path)), soft_wrap=True)


def _footnotes(report: Report, console: Console, words: Words) -> None:
    lines: list[str] = []
    if figures.is_simulated(report.stages):
        lines.append("* " + words("simulated.note"))
    lines += figures.conditions(report.stages, words)
    if lines:
        console.print()
    for line in lines:
        console.print(Text(line, style="dim"))


def _dips(report: Report, console: Console, words: Words) -> None:
    for stage in report.stages:
        status = stage.verdict.status
        if status == "outside" or not (stage.verdict.reasons or status == "dip"):
            continue
        style = "yellow" if status == "dip" else "dim"
        said = words("dip.long") if status == "dip" else words(status)
        name = figures.stage_name(stage, words)
        console.print(Text(f"{MARKS[status]} {name}{words('colon')}{said}", style=style))
        _reasons(stage, console)


def _reasons(stage: StageReport, console: Console) -> None:
    for reason in stage.verdict.reasons:
        console.print(Padding(Text(clean(reason)), (0, 0, 0, 4)))


def _refusals(report: Report, console: Console, words: Words) -> None:
    outside = [stage for stage in report.stages if stage.verdict.status == "outside"]
    if not outside:
        return
    body = Text()
    for stage in outside:
        name = figures.stage_name(stage, words)
        body.append(f"{MARKS['outside']} {name}{words('colon')}", style="bold red")
        body.append(words("outside.long") + "\n", style="red")
        for reason in stage.verdict.reasons:
            body.append(f"  {clean(reason)}\n")
    body.right_crop(1)
    names = words("comma").join(figures.stage_name(stage, words) for stage in outside)
    title = Text(words("outside.banner", stages=names), style="bold white on red")
    console.print()
    console.print(Panel(body, title=title, title_align="left", border_style="red"))


def _warnings(report: Report, console: Console, words: Words) -> None:
    lines = [("", warning) for warning in report.warnings]
    for stage in report.stages:
        lines += [
            (figures.stage_name(stage, words) + words("colon"), warning)
            for warning in stage.warnings
        ]
    if not lines:
        return
    console.print()
    console.print(Text(words("warnings"), style="bold yellow"))
    for who, warning in lines:
        text = Text.assemble((who, "bold"), clean(warning))
        console.print(Padding(text, (0, 0, 0, 2)))


def _samples(report: Report, console: Console, words: Words) -> None:
    if not report.samples:
        return
    console.print()
    console.print(Rule(Text(words("samples"), style="bold"), align="left", style="dim"))
    for sample in report.samples:
        prompt = Text(clean(sample.prompt).strip(), style="bold")
        console.print(Padding(prompt, (0, 0, 0, 0)))
        stages = _side_by_side(report, sample, console.width)
        _columns(sample, stages, console, words)
        console.print()


def _side_by_side(report: Report, sample: Sample, width: int) -> list[StageReport]:
    """The original, the last stage, and as many before it as there is width for."""
    having = [stage for stage in report.stages if stage.id in sample.texts]
    room = max(2, width // _COLUMN)
    return having if len(having) <= room else [having[0], *having[len(having) - room + 1 :]]


def _columns(sample: Sample, stages: list[StageReport], console: Console, words: Words) -> None:
    texts = [
        Text(clean(sample.texts[stage.id]).strip() or words("samples.none")) for stage in stages
    ]
    names = [Text(figures.stage_name(stage, words), style="cyan") for stage in stages]
    if console.width < 50:
        for name, text in zip(names, texts, strict=True):
            console.print(name)
            console.print(Padding(text, (0, 0, 0, 2)))
        return
    table = Table.grid(padding=(0, 3), expand=True)
    for _ in stages:
        table.add_column(ratio=1, overflow="fold")
    table.add_row(*names)
    table.add_row(*texts)
    console.print(table)
