from __future__ import annotations

import io
import math

import pytest
from rich.cells import cell_len
from rich.console import Console

from attar.core.report import Figure, Report, Sample, Verdict
from attar.present import figures
from attar.present.terminal import diff, show


def _shown(report: Report, width: int, language: str = "en", **options: str) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(report, console, language, **options)
    held = console.file
    assert isinstance(held, io.StringIO)
    return held.getvalue()


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 160, 240])
def test_every_number_is_whole_at_every_width(report: Report, width: int, language: str) -> None:
    text = _shown(report, width, language)
    words = text.split()
    for stage in report.stages:
        for name in figures.columns(report.stages):
            cell = figures.cell(stage, name)
            if cell is not None:
                wanted = cell.marked.split() + (cell.interval.split() if width >= 40 else [])
                missing = [part for part in wanted if part not in words]
                assert not missing, (stage.id, name)
    assert "…" not in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_line_is_wider_than_the_console(report: Report, width: int) -> None:
    for language in ("en", "zh"):
        lines = _shown(report, width, language).splitlines()
        assert max(cell_len(line) for line in lines) <= width


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_console_has_all_four_stages_side_by_side(report: Report, width: int) -> None:
    header = next(line for line in _shown(report, width).splitlines() if "measure" in line)
    assert header.split() == ["measure", "original", "depth", "logits", "gptq"]


def test_a_wide_console_has_a_row_for_each_stage(report: Report) -> None:
    lines = _shown(report, 240).splitlines()
    row = next(line for line in lines if line.startswith("gptq"))
    assert "38.07 [36.8, 39.4]" in row
    assert "33.1*" in row
    assert "✓ good" in row


def test_a_simulated_speed_has_its_footnote(report: Report) -> None:
    assert "* simulated: PyTorch only imitates" in _shown(report, 160)
    report.stages[-1].simulated = False
    assert "simulated" not in _shown(report, 160)


def test_what_else_is_shown(report: Report) -> None:
    text = _shown(report, 100, path="/runs/demo/" + "deep/" * 30 + "report.html")
    assert "~ depth: outside its bound, as the recipe allows here" in text
    assert "perplexity is 6.49 times" in text
    assert "dev and train share 3 rows" in text
    assert "logits: 12 lines of train.tsv" in text
    assert "cached" in text
    assert "3 min 35 s" in text
    assert "The whale rose slowly from" in text
    assert "deep/" * 30 + "report.html\n" in text
    assert "the guard refuses" not in text.lower()


def test_more_stages_write_samples_where_there_is_width(report: Report) -> None:
    assert "the the sea the of" not in _shown(report, 80)
    assert "the the sea the of" in _shown(report, 160)


def test_a_stage_outside_its_bound_is_loud(report: Report) -> None:
    report.stages[-1].verdict = Verdict(status="outside", reasons=["it says [bold]no[/bold]"])
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    show(report, console)
    held = console.file
    assert isinstance(held, io.StringIO)
    text = held.getvalue()
    assert "\x1b[1;37;41m" in text
    assert "The guard refuses this run: gptq" in text
    assert "it says [bold]no[/bold]" in text


def test_samples_cannot_command_the_terminal(report: Report) -> None:
    report.samples = [
        Sample(prompt="\x1b[2Jx", texts={"original": "[red]a\x07", "gptq": "\x9b31m"})
    ]
    text = _shown(report, 80)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\x9b" not in text
    assert "[red]a" in text


@pytest.mark.parametrize("width", [30, 80, 160])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_lonely_broken_and_empty_reports(report: Report, width: int, language: str) -> None:
    only = report.model_copy(update={"stages": report.stages[:1], "finished": False})
    assert "91.7 MB" in _shown(only, width, language)
    for stage in report.stages:
        for figure in stage.figures.values():
            figure.value, figure.low, figure.high = math.nan, math.inf, -math.inf
    assert "NaN" in _shown(report, width, language)
    bare = [stage.model_copy(update={"figures": {}, "seconds": None}) for stage in report.stages]
    assert "gptq" in _shown(report.model_copy(update={"stages": bare}), width, language)
    assert "demo" in _shown(report.model_copy(update={"stages": []}), width, language)


def _compared(left: Report, right: Report, width: int = 100, language: str = "en") -> str:
    console = Console(file=io.StringIO(), width=width)
    diff(left, right, console, language)
    held = console.file
    assert isinstance(held, io.StringIO)
    return held.getvalue()


def test_diff_shows_settings_figures_and_ratios(report: Report) -> None:
    other = report.model_copy(deep=True, update={"name": "again"})
    other.recipe["seed"] = 8
    other.stages[2].settings["temperature"] = 2.0
    other.stages[2].figures["perplexity"] = Figure(value=30.1, low=29, high=31)
    del other.stages[1]
    text = _compared(report, other)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["seed"] == ["seed", "7", "8"]
    assert rows["temperature"] == ["temperature", "1", "2"]
    assert "divergence" not in rows
    assert rows["perplexity"][1:] == [
        "33.62",
        "[32.5,",
        "34.8]",
        "30.10",
        "[29.0,",
        "31.0]",
        "0.895×",
    ]
    assert "depth  prune/depth  only in demo" in text
    assert "gptq  quantize/gptq  same settings, same figures" in text
    assert "只" not in text
    assert "仅见于 demo" in _compared(report, other, 60, "zh")


def test_diff_of_a_run_with_itself(report: Report) -> None:
    assert "Nothing differs." in _compared(report, report)


def test_diff_puts_a_new_stage_after_the_one_it_follows(report: Report) -> None:
    less = report.model_copy(update={"stages": [report.stages[0], report.stages[3]]})
    text = _compared(less, report, 80)
    assert text.index("prune/depth") < text.index("distill/logits") < text.index("quantize/gptq")
