"""Likeness and contrast: values and slopes against formulas derived by hand, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.ops.alike import (
    info_nce,
    maps_kl,
    missed,
    relations_kl,
    similarities_missed,
    turned,
)
from attar.ops.contrastive import (
    contrastive,
    interactive,
    relations,
    similarities,
    vectors_missed,
)

Array = NDArray[np.float64]
Formula = tuple[float, list[Array]]  # a value, and its slope in each of what has one
MASK = np.array([[True] * 5, [True] * 3 + [False] * 2])
REAL = int(MASK.sum())
SAME = np.array([[0, 1, 0, 2]]) == np.array([[0], [1], [0], [2]])
COOL, SCALE = 0.3, 3.0


def drawn(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


THERE = drawn(4, 6, seed=8), drawn(4, 6, seed=9)  # the teacher's towers


def shares(scores: Array, axis: int = -1) -> Array:
    powers = np.exp(scores - scores.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def units(vectors: Array) -> tuple[Array, Array]:
    """Vectors of length 1, and the lengths they had."""
    sizes = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    return vectors / sizes, sizes


def across(slope: Array, vectors: Array) -> Array:
    """The slope in vectors, of that in what they are at length 1: the part along them is lost."""
    unit, sizes = units(vectors)
    return (slope - (slope * unit).sum(-1, keepdims=True) * unit) / sizes


def missed_by_hand(own: Array, other: Array) -> Formula:
    rest, whole = (own - other) * MASK[..., None], (other[MASK] ** 2).sum()
    return float((rest**2).sum() / whole), [2 * rest / whole]


def turned_by_hand(own: Array, other: Array) -> Formula:
    one, two = units(own)[0], units(other)[0]
    # 1 - cos is half the square of what the two miss at length 1
    value = ((one - two) ** 2).sum(-1)[MASK].sum() / 2 / REAL
    return float(value), [across((one - two) * MASK[..., None] / REAL, own)]


def relations_by_hand(own: Array, other: Array, heads: int) -> Formula:
    value, slope = 0.0, np.zeros_like(own)
    for row, real in enumerate(MASK):
        for head in range(heads):
            sizes = [whole.shape[-1] // heads for whole in (own, other)]
            one, two = (
                whole[row, real, head * size : (head + 1) * size]
                for whole, size in zip((own, other), sizes, strict=True)
            )
            q, p = (shares(part @ part.T / np.sqrt(part.shape[1])) for part in (one, two))
            value += (p * np.log(p / q)).sum() / heads / REAL
            pull = (q - p) / heads / REAL / np.sqrt(sizes[0])
            slope[row, real, head * sizes[0] : (head + 1) * sizes[0]] = (pull + pull.T) @ one
    return value, [slope]


def maps_by_hand(own: Array, other: Array) -> Formula:
    value, slope = 0.0, np.zeros_like(own)
    alone = own.shape[1] == other.shape[1]
    for row, place in np.argwhere(MASK):
        q, p = own[row, :, place], other[row, :, place]
        count = own.shape[1]
        q, p = (q, p) if alone else (q.sum(0, keepdims=True) / count, p.mean(0, keepdims=True))
        value += (p * (np.log(p) - np.log(q))).sum() / len(q) / REAL
        slope[row, :, place] = -p / q / count / REAL
    return value, [slope]


def similarities_by_hand(own: Array, other: Array) -> Formula:
    unit, count = units(own)[0], len(own)
    rest = unit @ unit.T - units(other)[0] @ units(other)[0].T
    np.fill_diagonal(rest, 0)
    pairs = count * (count - 1)
    return float((rest**2).sum() / pairs), [across(4 * rest @ unit / pairs, own)]


def info_nce_by_hand(own: Array, other: Array) -> Formula:
    there, unit = units(other)[0], units(own)[0]
    share = shares(unit @ there.T / COOL)
    pull = (share - np.eye(len(own))) / len(own) / COOL
    return float(-np.log(share.diagonal()).mean()), [across(pull @ there, own)]


def told(scores: Array, axis: int) -> tuple[float, Array]:
    """How unlikely its own are in each row or column, and the slope in the scores."""
    share, wanted = shares(scores, axis), SAME / SAME.sum(axis, keepdims=True)
    return float(-(wanted * np.log(share)).sum() / len(scores)), (share - wanted) / len(scores)


def contrastive_by_hand(seen: Array, read: Array, scale: Array) -> Formula:
    scores = scale * (seen @ read.T)
    (one, rows), (other, columns) = told(scores, 1), told(scores, 0)
    pull = (rows + columns) / 2
    in_scale = (pull * (seen @ read.T)).sum()
    return (one + other) / 2, [scale * pull @ read, scale * pull.T @ seen, in_scale]


def interactive_by_hand(seen: Array, read: Array, scale: Array) -> Formula:
    cosines = seen @ THERE[1].T, read @ THERE[0].T
    (one, first), (other, second) = (told(scale * part, 1) for part in cosines)
    in_scale = (first * cosines[0] + second * cosines[1]).sum() / 2
    pulls = [scale * first @ THERE[1] / 2, scale * second @ THERE[0] / 2]
    return (one + other) / 2, [*pulls, in_scale]


def scores_by_hand(own: Array, other: Array) -> Formula:
    value, slope = 0.0, np.zeros_like(own)
    for axis in (0, 1):
        q, p = shares(own, axis), shares(other, axis)
        value += (p * np.log(p / q)).sum() / len(own) / 2
        slope += (q - p) / len(own) / 2
    return value, [slope]


def vectors_by_hand(seen: Array, read: Array) -> Formula:
    rests = [seen - THERE[0], read - THERE[1]]
    return float(np.mean([(rest**2).sum(1).mean() for rest in rests])), [r / 4 for r in rests]


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


STATES = [drawn(2, 5, 8, seed=1), drawn(2, 5, 8, seed=2)]
WIDER = [STATES[0], drawn(2, 5, 12, seed=3)]
MAPS = [shares(drawn(2, 4, 5, 5, seed=4)), shares(drawn(2, 4, 5, 5, seed=5))]
TEXTS = [drawn(4, 6, seed=6), drawn(4, 6, seed=7)]
TOWERS = [*TEXTS, np.array(SCALE)]
THEIRS = (tensor(THERE[0]), tensor(THERE[1]))
REALS, ALIKE = torch.tensor(MASK), torch.tensor(SAME)
# How it is called, the formula, what it is called with: what comes first has slopes.
CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Formula], list[Array]]] = {
    "missed": (lambda a, b: missed(a, b, REALS), missed_by_hand, STATES),
    "turned": (lambda a, b: turned(a, b, REALS), turned_by_hand, STATES),
    "relations of one head": (
        lambda a, b: relations_kl(a, b, 1, REALS),
        lambda a, b: relations_by_hand(a, b, 1),
        WIDER,
    ),
    "relations of four heads": (
        lambda a, b: relations_kl(a, b, 4, REALS),
        lambda a, b: relations_by_hand(a, b, 4),
        WIDER,
    ),
    "maps": (lambda a, b: maps_kl(a, b, REALS), maps_by_hand, MAPS),
    "maps of fewer heads": (
        lambda a, b: maps_kl(a, b, REALS),
        maps_by_hand,
        [MAPS[0][:, :2], MAPS[1]],
    ),
    "similarities": (similarities_missed, similarities_by_hand, [TEXTS[0], drawn(4, 9, seed=7)]),
    "info nce": (lambda a, b: info_nce(a, b, COOL), info_nce_by_hand, TEXTS),
    "contrastive": (
        lambda a, b, scale: contrastive(similarities(a, b, scale), ALIKE),
        contrastive_by_hand,
        TOWERS,
    ),
    "interactive": (
        lambda a, b, scale: interactive((a, b), THEIRS, scale, ALIKE),
        interactive_by_hand,
        TOWERS,
    ),
    "relations of towers": (
        relations,
        scores_by_hand,
        [3 * drawn(4, 4, seed=6), 3 * drawn(4, 4, seed=7)],
    ),
    "vectors": (lambda a, b: vectors_missed((a, b), THEIRS), vectors_by_hand, TEXTS),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_slopes_are_the_formula(name: str) -> None:
    found, formula, given = CASES[name]
    tensors = [tensor(part).requires_grad_() for part in given]
    value = found(*tensors)
    wanted, slopes = formula(*(part.detach().double().numpy() for part in tensors))
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    # on to what is not 1, as where a signal has weight
    taken = torch.autograd.grad(2.5 * value, tensors[: len(slopes)])
    for one, other in zip(taken, slopes, strict=True):
        assert np.abs(other).max() > 0.01
        np.testing.assert_allclose(one.double().numpy(), 2.5 * other, rtol=1e-4, atol=1e-6)
