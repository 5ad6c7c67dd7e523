from __future__ import annotations

import math
from dataclasses import replace

import pytest

from attar.core.recipe import Guard
from attar.measure.statistics import Comparison
from attar.measure.verdict import Evidence, Looping, judge_stage
from attar.ops.bootstrap import Interval


def _ratio(value: float, low: float, high: float) -> Comparison:
    return Comparison(perplexity_ratio=Interval(value, low, high))


def _drop(value: float, low: float, high: float) -> Comparison:
    return Comparison(accuracy_drop=Interval(value, low, high))


@pytest.mark.parametrize(
    ("comparison", "status"),
    [
        (_ratio(1.1, 1.0, 1.2), "good"),
        (_ratio(1.6, 1.5, 1.7), "good"),  # the lower end is not above the bound
        (_ratio(1.6, 1.51, 1.7), "outside"),
        (_ratio(math.inf, math.inf, math.inf), "outside"),
        (_ratio(math.nan, math.nan, math.nan), "outside"),
        (_drop(8.0, 4.9, 11.0), "good"),
        (_drop(8.0, 5.1, 11.0), "outside"),
        (_drop(-3.0, -5.0, -1.0), "good"),
        (None, "good"),
    ],
)
def test_bounds(comparison: Comparison | None, status: str) -> None:
    verdict = judge_stage(Guard(), Evidence(comparison, judged=True))
    assert verdict.status == status
    assert len(verdict.reasons) == (status == "outside")


def test_reasons_hold_the_numbers_and_a_remedy() -> None:
    (reason,) = judge_stage(Guard(), Evidence(_ratio(1.876, 1.71, 2.04), judged=True)).reasons
    assert "1.88 times that of the original" in reason
    assert "1.71 to 2.04" in reason
    assert "1.5 times" in reason
    assert "guard.may_dip" in reason
    guard = Guard(reference="teacher", accuracy=2.0)
    (reason,) = judge_stage(guard, Evidence(_drop(8.04, 5.1, 11.0), judged=True)).reasons
    assert "8.0 points below that of stage 'teacher'" in reason
    assert "at most 2 points" in reason


def test_no_bound_no_refusal() -> None:
    guard = Guard(perplexity=None, accuracy=None)
    assert judge_stage(guard, Evidence(_ratio(9.0, 8.0, 10.0), judged=True)).status == "good"
    assert judge_stage(guard, Evidence(_drop(50.0, 40.0, 60.0), judged=True)).status == "good"


def test_a_guard_that_is_off_judges_nothing() -> None:
    verdict = judge_stage(Guard(enabled=False), Evidence(judged=True, nan=True))
    assert (verdict.status, verdict.reasons) == ("unjudged", [])


def test_nothing_measured_is_unjudged() -> None:
    assert judge_stage(Guard(), Evidence()).status == "unjudged"


def test_a_stage_that_may_dip() -> None:
    verdict = judge_stage(Guard(), Evidence(_ratio(9.0, 8.0, 10.0), judged=True, may_dip=True))
    assert verdict.status == "dip"
    assert verdict.reasons
    assert judge_stage(Guard(), Evidence(judged=True, may_dip=True)).status == "good"


def test_nan_never_dips() -> None:
    evidence = Evidence(_ratio(math.nan, math.nan, math.nan), judged=True, nan=True, may_dip=True)
    verdict = judge_stage(Guard(perplexity=None), evidence)
    assert verdict.status == "outside"
    (reason,) = verdict.reasons
    assert "NaN" in reason


@pytest.mark.parametrize(
    ("looping", "status"),
    [((0.5, 0.0), "outside"), ((0.4, 0.0), "good"), ((0.75, 0.5), "good"), ((1.0, 0.5), "outside")],
)
def test_endless_repetition(looping: tuple[float, float], status: str) -> None:
    evidence = Evidence(judged=True, looping=Looping(*looping))
    assert judge_stage(Guard(), evidence).status == status
    dipping = judge_stage(Guard(), replace(evidence, may_dip=True))
    assert dipping.status == {"outside": "dip"}.get(status, status)  # until it is healed


def test_repetition_names_whom_it_is_held_against() -> None:
    evidence = Evidence(judged=True, looping=Looping(1.0, 0.25, "teacher"))
    (reason,) = judge_stage(Guard(), evidence).reasons
    assert "in 100% of what it writes, stage 'teacher' in 25%" in reason


@pytest.mark.parametrize(
    ("promises", "after", "changed", "status"),
    [
        ({"smaller"}, 99, True, "good"),
        ({"smaller"}, 100, True, "outside"),
        ({"smaller"}, None, True, "good"),
        ({"changed"}, 100, True, "good"),
        ({"changed"}, 100, False, "outside"),
        ({"changed"}, 100, None, "good"),
        (set(), 200, False, "good"),
    ],
)
def test_promises(promises: set[str], after: int | None, changed: bool | None, status: str) -> None:
    evidence = Evidence(
        judged=True,
        size_before=100,
        size_after=after,
        changed=changed,
        promises=frozenset(promises),
    )
    assert judge_stage(Guard(), evidence).status == status
    dipping = replace(evidence, may_dip=True)  # no later step mends a promise
    assert judge_stage(Guard(), dipping).status == status


def test_without_data_a_stage_may_be_refused_but_is_never_good() -> None:
    promises = frozenset({"changed"})
    assert judge_stage(Guard(), Evidence(changed=True, promises=promises)).status == "unjudged"
    assert judge_stage(Guard(), Evidence(changed=False, promises=promises)).status == "outside"
    assert judge_stage(Guard(), Evidence(nan=True)).status == "outside"


def test_every_broken_rule_has_its_reason() -> None:
    evidence = Evidence(
        comparison=_ratio(9.0, 8.0, 10.0),
        judged=True,
        size_before=2_000_000,
        size_after=2_000_000,
        changed=False,
        promises=frozenset({"smaller", "changed"}),
        looping=Looping(1.0, 0.0),
    )
    reasons = judge_stage(Guard(), evidence).reasons
    assert len(reasons) == 4
    assert "2.00 MB" in " ".join(reasons)
