from __future__ import annotations

import math

import pytest

from attar.core.recipe import Guard
from attar.measure.items import Items
from attar.measure.statistics import Comparison
from attar.measure.verdict import Evidence, judge_stage
from attar.ops.bootstrap import Interval

FINE = Items("causal-lm", [1.0], [1])
NAN = Items("causal-lm", [math.nan], [1], nan=True)


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
    verdict = judge_stage(Guard(), Evidence(comparison, FINE))
    assert verdict.status == status
    assert len(verdict.reasons) == (status == "outside")


def test_reasons_hold_the_numbers_and_a_remedy() -> None:
    (reason,) = judge_stage(Guard(), Evidence(_ratio(1.876, 1.71, 2.04), FINE)).reasons
    assert "1.88 times that of the original" in reason
    assert "1.71 to 2.04" in reason
    assert "1.5 times" in reason
    assert "guard.may_dip" in reason
    guard = Guard(reference="teacher", accuracy=2.0)
    (reason,) = judge_stage(guard, Evidence(_drop(8.04, 5.1, 11.0), FINE)).reasons
    assert "8.0 points below that of stage 'teacher'" in reason
    assert "at most 2 points" in reason


def test_no_bound_no_refusal() -> None:
    guard = Guard(perplexity=None, accuracy=None)
    assert judge_stage(guard, Evidence(_ratio(9.0, 8.0, 10.0), FINE)).status == "good"
    assert judge_stage(guard, Evidence(_drop(50.0, 40.0, 60.0), FINE)).status == "good"


def test_a_guard_that_is_off_judges_nothing() -> None:
    verdict = judge_stage(Guard(enabled=False), Evidence(items=NAN))
    assert (verdict.status, verdict.reasons) == ("unjudged", [])


def test_nothing_measured_is_unjudged() -> None:
    assert judge_stage(Guard(), Evidence()).status == "unjudged"


def test_a_stage_that_may_dip() -> None:
    verdict = judge_stage(Guard(), Evidence(_ratio(9.0, 8.0, 10.0), FINE, may_dip=True))
    assert verdict.status == "dip"
    assert verdict.reasons
    assert judge_stage(Guard(), Evidence(items=FINE, may_dip=True)).status == "good"


def test_nan_never_dips() -> None:
    evidence = Evidence(_ratio(math.nan, math.nan, math.nan), NAN, may_dip=True)
    verdict = judge_stage(Guard(perplexity=None), evidence)
    assert verdict.status == "outside"
    (reason,) = verdict.reasons
    assert "NaN" in reason


@pytest.mark.parametrize(
    ("looping", "status"),
    [((0.5, 0.0), "outside"), ((0.4, 0.0), "good"), ((0.75, 0.5), "good"), ((1.0, 0.5), "outside")],
)
def test_endless_repetition(looping: tuple[float, float], status: str) -> None:
    assert judge_stage(Guard(), Evidence(items=FINE, looping=looping)).status == status


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
        items=FINE,
        size_before=100,
        size_after=after,
        changed=changed,
        promises=frozenset(promises),
    )
    assert judge_stage(Guard(), evidence).status == status


def test_every_broken_rule_has_its_reason() -> None:
    evidence = Evidence(
        comparison=_ratio(9.0, 8.0, 10.0),
        items=FINE,
        size_before=2_000_000,
        size_after=2_000_000,
        changed=False,
        promises=frozenset({"smaller", "changed"}),
        looping=(1.0, 0.0),
    )
    reasons = judge_stage(Guard(), evidence).reasons
    assert len(reasons) == 4
    assert "2.00 MB" in " ".join(reasons)
