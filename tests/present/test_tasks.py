"""A figure for each task: the table's rows and columns are stages and tasks."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from attar.core.report import Figure, Report, StageReport
from attar.present import figures
from attar.present.html import page
from attar.present.terminal import show
from attar.present.words import Words


@pytest.fixture
def report() -> Report:
    def stage(name: str, one: float, other: float, **more: Any) -> StageReport:
        found = {
            "accuracy on mails": Figure(value=one, low=one - 1, high=one + 1, unit="%"),
            "accuracy on reviews": Figure(value=other, unit="%"),
        }
        return StageReport(id=name, kind="adapt/full", key=name, figures={**found, **more})

    lost = Figure(value=3.25, unit="points")
    stages = [stage("original", 50.0, 50.0), stage("first", 97.0, 52.0)]
    stages.append(stage("second", 93.5, 91.0, forgetting=lost))
    return Report(name="tasks", task="classification", recipe={}, environment={}, stages=stages)


def test_the_table_is_the_matrix(report: Report) -> None:
    console = Console(record=True, width=120, file=StringIO())
    show(report, console)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["first", "97.0%", "[96.0,", "98.0]", "52.0%"] in [line[:5] for line in lines]
    last = next(line for line in lines if line[:1] == ["second"])
    assert last[1:6] == ["93.5%", "[92.5,", "94.5]", "91.0%", "3.250"]


def test_the_page_says_which_way_is_better(report: Report) -> None:
    text = page(report)
    assert "accuracy on mails" in text
    assert text.count("↑") == 2
    assert text.count("↓") == 1


def test_names_are_in_the_reader_s_language() -> None:
    assert figures.label("accuracy on mails", Words("zh")) == "mails 上的准确率"
    assert figures.label("forgetting", Words("zh")) == "遗忘"
