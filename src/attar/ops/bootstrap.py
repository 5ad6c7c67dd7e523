"""Confidence intervals by resampling: which numbers could have come of another draw of texts.

The percentile bootstrap (Efron 1979, "Bootstrap methods: another look at the jackknife", Annals
of Statistics 7(1); Efron and Tibshirani 1993, chapter 13): draw as many sequences as there are,
with replacement, and compute the statistic again; the middle 95 % of many such draws is the
interval. The sequence is what is drawn, for the tokens of one text are not independent. Two
models are compared on the same draws (Koehn 2004, "Statistical significance tests for machine
translation evaluation", EMNLP), so that what makes a text hard for both cancels out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
_TAILS = (2.5, 97.5)  # percentiles that leave 95 % between them
_AT_ONCE = 1 << 20  # draws of a sequence held at once; the draws do not depend on it

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A statistic and the ends of its 95 % interval; all three NaN where it has no value."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Sums:
    """One number and one weight for each sequence: nll and tokens, hits and texts.

    The statistic is sum(numerators) / sum(denominators); both are [sequences].
    """

    numerators: ArrayLike
    denominators: ArrayLike


def interval(
    numerators: ArrayLike, denominators: ArrayLike, seed: int, resamples: int = RESAMPLES
) -> Interval:
    """Interval of sum(numerators) / sum(denominators) over sequences; both [sequences].

    A draw whose denominators add up to nothing has no statistic and is left out.
    """
    above, below = _checked(Sums(numerators, denominators))
    drawn = [_ratio(above[rows], below[rows]) for rows in _draws(len(above), seed, resamples)]
    return _between(float(_ratio(above, below)), drawn)


def paired(own: Sums, reference: Sums, seed: int, resamples: int = RESAMPLES) -> Interval:
    """Interval of own statistic - reference's, both on the same drawn sequences.

    Raises ValueError where the two do not have the same sequences.
    """
    above, below = _checked(own)
    other_above, other_below = _checked(reference)
    if above.shape != other_above.shape:
        raise ValueError(f"{len(above)} and {len(other_above)} sequences cannot be paired")
    drawn = [
        _ratio(above[rows], below[rows]) - _ratio(other_above[rows], other_below[rows])
        for rows in _draws(len(above), seed, resamples)
    ]
    value = float(_ratio(above, below)) - float(_ratio(other_above, other_below))
    return _between(value, drawn)


def macro_f1(
    predictions: ArrayLike, targets: ArrayLike, seed: int, resamples: int = RESAMPLES
) -> Interval:
    """Interval of the mean of the classes' F1, from 0 to 1; both [texts], class numbers.

    A class counts where it occurs among predictions or targets, as in scikit-learn. Drawing
    texts with replacement is drawing the cells of their confusion matrix from a multinomial
    distribution, which does not depend on how many texts there are.
    """
    guessed, wanted = np.asarray(predictions, np.int64), np.asarray(targets, np.int64)
    if guessed.shape != wanted.shape or guessed.ndim != 1:
        raise ValueError(f"predictions {guessed.shape} and targets {wanted.shape} do not pair up")
    if not len(guessed):
        return Interval(np.nan, np.nan, np.nan)
    pairs, counts = np.unique(np.stack([guessed, wanted], 1), axis=0, return_counts=True)
    classes = np.unique(pairs)
    is_guess = (pairs[:, :1] == classes).astype(np.float64)  # [cells, classes]
    is_target = (pairs[:, 1:] == classes).astype(np.float64)
    random = np.random.default_rng(seed)
    cells = random.multinomial(len(guessed), counts / counts.sum(), size=resamples)
    value = _mean_f1(counts[None].astype(np.float64), is_guess, is_target)
    return _between(float(value[0]), [_mean_f1(cells.astype(np.float64), is_guess, is_target)])


def _mean_f1(cells: Floats, is_guess: Floats, is_target: Floats) -> Floats:
    """Macro-F1 of confusion matrices given by their cells: [draws, cells] -> [draws]."""
    hits = cells @ (is_guess * is_target)
    seen = cells @ is_guess + cells @ is_target  # 2 hits + false positives + false negatives
    scores = np.divide(2 * hits, seen, out=np.zeros_like(seen), where=seen > 0)
    return scores.sum(1) / (seen > 0).sum(1)


def _checked(sums: Sums) -> tuple[Floats, Floats]:
    above = np.asarray(sums.numerators, np.float64)
    below = np.asarray(sums.denominators, np.float64)
    if above.shape != below.shape or above.ndim != 1:
        raise ValueError(f"numerators {above.shape} and denominators {below.shape} do not pair up")
    return above, below


def _draws(count: int, seed: int, resamples: int) -> Iterator[NDArray[np.int32]]:
    """Numbers of the drawn sequences, [draws, count], some draws at a time."""
    random = np.random.default_rng(seed)
    each = max(1, _AT_ONCE // max(count, 1))
    for start in range(0, resamples if count else 0, each):
        size = (min(each, resamples - start), count)
        yield random.integers(count, size=size, dtype=np.int32)


def _ratio(above: Floats, below: Floats) -> Floats:
    """Ratio of the sums over the last axis; NaN where there is nothing to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        total = below.sum(-1)
        return np.where(total > 0, above.sum(-1) / total, np.nan)


def _between(value: float, drawn: list[Floats]) -> Interval:
    """The middle 95 % of the draws that have a statistic."""
    found = np.concatenate(drawn) if drawn else np.empty(0)
    found = found[~np.isnan(found)]
    if np.isnan(value) or not len(found):
        return Interval(value, np.nan, np.nan)
    with np.errstate(invalid="ignore"):
        low, high = np.percentile(found, _TAILS)
    return Interval(value, float(low), float(high))
