"""Reports and contexts: typed, closed, and JSON that reads back equal."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from attar.core.context import Context, Silent
from attar.core.report import Figure, Report, Sample, StageReport, Verdict


def _report() -> Report:
    stage = StageReport(
        id="rtn",
        kind="quantize/rtn",
        key="abc",
        parent="root",
        simulated=True,
        figures={"perplexity": Figure(value=20.0, low=19.0, high=21.0)},
        notes={"scores": [0.1, 0.2], "table": {"a": None}},
        curves={"loss/train": [(0.0, 3.0), (1.0, 2.0)]},
        verdict=Verdict(status="outside", reasons=["perplexity 2.0 times the original's"]),
    )
    original = StageReport(id="original", kind="original", key="root")
    return Report(
        name="run",
        task="causal-lm",
        recipe={"model": {"path": "x"}},
        environment={"python": "3.11"},
        stages=[original, stage],
        samples=[Sample(prompt="Once", texts={"original": " upon"})],
    )


def test_json_reads_back_equal():
    report = _report()
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert report.stages[0].verdict.status == "unjudged"


def test_defaults_are_not_shared():
    one, two = (StageReport(id=name, kind="k", key="k") for name in "ab")
    one.figures["x"] = Figure(value=1)
    one.verdict.reasons.append("why")
    assert two.figures == {}
    assert two.verdict.reasons == []


def test_unknown_figures_of_speech_are_refused():
    with pytest.raises(ValidationError):
        Figure(value=1, unti="%")
    with pytest.raises(ValidationError):
        Verdict(status="fine")


def test_a_context_keeps_what_a_step_reports():
    said: list[str] = []

    class Loud(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    ctx = Context(task="causal-lm", data=str, model=str, progress=Loud())
    ctx.note("kept", [0, 2])
    ctx.point("loss/train", 1, 0.5)
    ctx.point("loss/train", 2, 0.25)
    ctx.warn("careful")
    assert ctx.notes == {"kept": [0, 2]}
    assert ctx.curves == {"loss/train": [(1, 0.5), (2, 0.25)]}
    assert (ctx.warnings, said) == (["careful"], ["warning: careful"])
    with ctx.progress.bar("work", 3) as bar:
        bar.advance(1, "one")
