from __future__ import annotations

import math

import pytest

from attar.core.report import Figure, Report, StageReport
from attar.present import figures
from attar.present.plain import (
    bytes_text,
    clean,
    count_text,
    duration,
    flat,
    ratio_text,
    significant,
    value_text,
)
from attar.present.words import Words


def _stage(name: str, figure: Figure, simulated: bool = False) -> StageReport:
    return StageReport(id="s", kind="k", key="1", figures={name: figure}, simulated=simulated)


@pytest.mark.parametrize(
    ("name", "figure", "text"),
    [
        ("perplexity", Figure(value=27.951, low=27.07, high=28.84), "27.95 [27.1, 28.8]"),
        ("perplexity", Figure(value=9.9996, low=9.996, high=10.04), "10.00 [10.0, 10.0]"),
        ("perplexity", Figure(value=123456.0), "123456"),
        ("perplexity", Figure(value=3.2e9), "3.20e9"),
        ("perplexity", Figure(value=math.inf), "∞"),
        ("perplexity", Figure(value=math.nan, low=math.nan, high=math.inf), "NaN [NaN, ∞]"),
        ("kl", Figure(value=0.29714, low=0.2813, high=0.3132, unit="nats/token"),
         "0.297 [0.281, 0.313]"),
        ("kl", Figure(value=0.00213, low=0.0, high=0.0043), "0.00213 [0, 0.00430]"),
        ("kl", Figure(value=-2e-9), "-2.00e-9"),
        ("agreement", Figure(value=72.41, low=71.3, high=73.6, unit="%"), "72.4% [71.3, 73.6]"),
        ("accuracy", Figure(value=0.961), "96.1%"),
        ("accuracy", Figure(value=math.nan, unit="%"), "NaN"),
        ("tokens_per_second", Figure(value=41.73, unit="tokens/s"), "41.7"),
        ("tokens_per_second", Figure(value=1234.4), "1234"),
        ("latency_p50", Figure(value=23.81, unit="ms"), "23.8 ms"),
        ("latency_p50", Figure(value=1.5, unit="s"), "1500 ms"),
        ("size", Figure(value=88_410_112, unit="bytes"), "88.4 MB"),
        ("size", Figure(value=1_084_000_000), "1.08 GB"),
        ("size", Figure(value=999_600), "1.00 MB"),
        ("size", Figure(value=0), "0 B"),
        ("peak_memory", Figure(value=math.nan, unit="bytes"), "NaN"),
        ("parameters", Figure(value=134_515_008), "134.5 M"),
        ("parameters", Figure(value=1_235_814_400), "1.236 B"),
        ("parameters", Figure(value=12), "12"),
        ("my_own", Figure(value=0.5, unit="bits"), "0.500"),
    ],
)  # fmt: skip
def test_a_figure_is_written_by_its_name_and_unit(name: str, figure: Figure, text: str) -> None:
    cell = figures.cell(_stage(name, figure), name)
    assert cell is not None
    assert cell.text == text


def test_only_speeds_of_a_simulated_stage_are_marked() -> None:
    speed = figures.cell(_stage("tokens_per_second", Figure(value=33.0), True), "tokens_per_second")
    size = figures.cell(_stage("size", Figure(value=33.0), True), "size")
    assert speed is not None
    assert size is not None
    assert (speed.text, size.text) == ("33.0*", "33 B")
    assert not figures.is_simulated([_stage("size", Figure(value=1.0), True)])


def test_columns_are_in_order_and_only_those_there_are(report: Report) -> None:
    report.stages[-1].figures["bits"] = Figure(value=4.25)
    assert figures.columns(report.stages) == [
        "perplexity",
        "kl",
        "agreement",
        "tokens_per_second",
        "latency_p50",
        "latency_p95",
        "peak_memory",
        "size",
        "parameters",
        "bits",
    ]
    assert figures.columns([]) == []


def test_conditions_are_said_once_and_name_the_stages_they_hold_for(report: Report) -> None:
    lines = figures.conditions(report.stages, Words())
    assert "tokens/s, latency p50, latency p95: batch 1, 2 threads, 3 warm-ups" in lines
    assert "on disk (original): the GGUF file it came from" in lines


def test_the_headline_says_size_and_quality_but_no_simulated_speed(report: Report) -> None:
    assert figures.headline(report, Words()) == "1.04× smaller, at 1.36× the perplexity"
    report.stages[-1].simulated = False
    assert figures.headline(report, Words()).endswith(", 1.26× slower")
    assert figures.headline(report, Words("zh")).startswith(
        "体积缩小到 1/1.04，困惑度为原来的 1.36 倍"
    )


def test_the_headline_of_a_classifier_is_its_accuracy(report: Report) -> None:
    report.task = "classification"
    for stage, value in zip(report.stages, (97.8, 96, 95, 96.1), strict=True):
        stage.figures["accuracy"] = Figure(value=value, unit="%")
    assert "accuracy 97.8% → 96.1%" in figures.headline(report, Words())


def test_intervals_that_touch_are_not_apart() -> None:
    assert figures.apart(Figure(value=1, low=0.5, high=1.5), Figure(value=2, low=1.6, high=3))
    assert not figures.apart(Figure(value=1, low=0.5, high=1.5), Figure(value=2, low=1.5, high=3))


def test_a_ratio_to_nothing_is_none() -> None:
    assert figures.ratio(Figure(value=1), Figure(value=0)) is None
    assert figures.ratio(Figure(value=math.inf), Figure(value=2)) is None
    assert figures.ratio(None, Figure(value=2)) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (-1.0, "0.0 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (200.0, "3 min 20 s"),
        (3599.8, "1 h 00 min"),
        (3900.0, "1 h 05 min"),
        (math.inf, "?"),
    ],
)
def test_durations_are_for_reading(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_numbers() -> None:
    assert significant(0.0, 4) == "0"
    assert significant(-math.inf, 4) == "-∞"
    assert ratio_text(3.2) == "3.20"
    assert bytes_text(999) == "999 B"
    assert count_text(999_960) == "1.000 M"


def test_settings_read_as_a_person_writes_them() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    assert value_text(3e-4) == "0.0003"
    assert value_text([1, 2.0, "x"]) == "1, 2, x"
    assert value_text(True) == "true"
    assert value_text(None) == "–"
    assert value_text([{"a": 1}]) == "[a: 1]"


def test_clean_takes_away_what_a_terminal_obeys() -> None:
    assert clean("a\x1b[31mb\x00\u202e\r\nc\td\ud800") == "a�[31mb��\nc\td�"
