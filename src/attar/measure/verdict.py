"""The guard: whether a stage stays within its bounds, and if not, why and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from attar.core.recipe import Guard
from attar.core.report import Verdict
from attar.measure.statistics import Comparison
from attar.ops.bootstrap import Interval

LOOPING = 0.5  # of the continuations may end in a loop, above the share of whom it is held against


@dataclass(frozen=True)
class Looping:
    """Shares of continuations that end in a loop: the stage's own, and those of `whose`."""

    own: float
    theirs: float
    whose: str = "original"


@dataclass(frozen=True)
class Evidence:
    """What is known of a stage when it is judged; None where it was not measured.

    `judged` says whether there was held-out data: without it a stage may be refused, but is
    never called good. `nan`: something that it computes is NaN or infinite. `size_before` and
    `size_after` are bytes on disk of the weights, `changed` says whether the weights differ
    from the parent's.
    """

    comparison: Comparison | None = None
    judged: bool = False
    nan: bool = False
    size_before: int | None = None
    size_after: int | None = None
    changed: bool | None = None
    promises: frozenset[str] = frozenset()
    looping: Looping | None = None
    may_dip: bool = False


def judge_stage(guard: Guard, evidence: Evidence) -> Verdict:
    """Judge a stage; the end of an interval nearest to the bound decides, so noise never does.

    Quality may dip where the recipe says so, and endless repetition with it: a model that was
    just pruned repeats itself until it is healed. NaN and a broken promise never may, for no
    later step mends them: what was to be smaller is not, what was to change did not.
    """
    if not guard.enabled:
        return Verdict(status="unjudged")
    firm = [*_broken(evidence), *_promises(evidence)]
    loose: list[str] = []
    if not evidence.nan:  # which is why all else is off
        loose = [*_quality(guard, evidence.comparison), *_repetition(evidence.looping)]
    if firm or (loose and not evidence.may_dip):
        return Verdict(status="outside", reasons=[*firm, *loose])
    if loose:
        return Verdict(status="dip", reasons=loose)
    return Verdict(status="good" if evidence.judged else "unjudged")


def _broken(evidence: Evidence) -> Iterator[str]:
    if evidence.nan:
        yield (
            "the model computes NaN or infinite numbers: the step damaged it. Lower its learning "
            "rate or press less, or try precision: float32"
        )


def _quality(guard: Guard, comparison: Comparison | None) -> Iterator[str]:
    if comparison is None:
        return
    ratio, drop = comparison.perplexity_ratio, comparison.accuracy_drop
    whose = _whose(guard.reference)
    if ratio is not None and guard.perplexity is not None and _above(ratio, guard.perplexity):
        yield (
            f"its perplexity is {ratio.value:.3g} times that of {whose} (95 % interval "
            f"{ratio.low:.3g} to {ratio.high:.3g}), and at most {guard.perplexity:g} times is "
            f"allowed. {_remedy('perplexity')}"
        )
    if drop is not None and guard.accuracy is not None and _above(drop, guard.accuracy):
        yield (
            f"its accuracy is {drop.value:.1f} points below that of {whose} (95 % interval "
            f"{drop.low:.1f} to {drop.high:.1f}), and at most {guard.accuracy:g} points are "
            f"allowed. {_remedy('accuracy')}"
        )


def _repetition(looping: Looping | None) -> Iterator[str]:
    if looping is not None and looping.own >= looping.theirs + LOOPING:
        yield (
            f"it repeats itself without end in {looping.own:.0%} of what it writes, "
            f"{_whose(looping.whose)} in {looping.theirs:.0%}. Press less, or heal it by "
            "distillation and name this stage in guard.may_dip"
        )


def _promises(evidence: Evidence) -> Iterator[str]:
    before, after = evidence.size_before, evidence.size_after
    told = "smaller" in evidence.promises
    if told and before is not None and after is not None and after >= before:
        yield (
            f"the step promised a smaller model, but its weights take {_bytes(after)} on disk, "
            f"and {_bytes(before)} before. Widen its scope, or take the step out"
        )
    if "changed" in evidence.promises and evidence.changed is False:
        yield (
            "the step promised to change the weights, but they are the same, byte for byte. "
            "Check its scope and its settings, or take the step out"
        )


def _above(found: Interval, bound: float) -> bool:
    """Whether even the lower end is above the bound, or cannot be told to be below it."""
    low = found.value if math.isnan(found.low) else found.low
    return math.isnan(low) or low > bound


def _whose(name: str) -> str:
    return "the original" if name == "original" else f"stage {name!r}"


def _remedy(bound: str) -> str:
    return (
        "Press less, raise guard."
        f"{bound}, or heal it by distillation and name this stage in guard.may_dip"
    )


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count:,} bytes".replace(",", " ")
