"""Losses of two towers against formulas written out in float64."""

from __future__ import annotations

import math

import pytest
import torch

from attar.ops.contrastive import (
    contrastive,
    interactive,
    relations,
    similarities,
    vectors_missed,
)

TEXTS = [0, 1, 0, 2]  # the first and the third row have the same text
ROWS = range(len(TEXTS))


def unit(seed: int, width: int = 5) -> torch.Tensor:
    found = torch.randn(4, width, generator=torch.Generator().manual_seed(seed))
    return (found / found.norm(dim=-1, keepdim=True)).requires_grad_(True)


def same(texts: list[int]) -> torch.Tensor:
    ids = torch.tensor(texts)
    return ids[:, None] == ids[None]


def shares(scores: list[list[float]]) -> list[list[float]]:
    rows = [[math.exp(score) for score in row] for row in scores]
    return [[value / sum(row) for value in row] for row in rows]


def dots(one: torch.Tensor, other: torch.Tensor, scale: float) -> list[list[float]]:
    left, right = one.detach().double().tolist(), other.detach().double().tolist()
    return [[scale * sum(a * b for a, b in zip(x, y, strict=True)) for y in right] for x in left]


def across(scores: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*scores, strict=True)]


def told(scores: list[list[float]], texts: list[int]) -> float:
    total = 0.0
    for row, share in enumerate(shares(scores)):
        own = [column for column in ROWS if texts[column] == texts[row]]
        total -= sum(math.log(share[column]) for column in own) / len(own)
    return total / len(texts)


@pytest.mark.parametrize("texts", [TEXTS, [0, 1, 2, 3]])
def test_the_contrastive_loss(texts):
    seen, read = unit(1), unit(2)
    scores = dots(seen, read, 7.0)
    expected = (told(scores, texts) + told(across(scores), texts)) / 2
    found = contrastive(similarities(seen, read, torch.tensor(7.0)), same(texts))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def test_without_texts_that_recur_it_is_cross_entropy_with_the_diagonal():
    scores = similarities(unit(1), unit(2), torch.tensor(7.0))
    wanted = torch.arange(4)
    both = [torch.nn.functional.cross_entropy(each, wanted) for each in (scores, scores.t())]
    assert torch.allclose(contrastive(scores, torch.eye(4).bool()), sum(both) / 2)


def test_relations_are_a_divergence_over_rows_and_columns():
    own, other = dots(unit(1), unit(2), 7.0), dots(unit(3), unit(4), 3.0)
    expected = 0.0
    for mine, theirs in ((own, other), (across(own), across(other))):
        for p, q in zip(shares(theirs), shares(mine), strict=True):
            expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 8
    found = relations(torch.tensor(own), torch.tensor(other))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(relations(torch.tensor(own), torch.tensor(own))) == pytest.approx(0, abs=1e-6)


def test_interactive_contrast_takes_the_others_from_the_teacher():
    student, teacher = (unit(1), unit(2)), (unit(3), unit(4))
    expected = told(dots(student[0], teacher[1], 7.0), TEXTS)
    expected += told(dots(student[1], teacher[0], 7.0), TEXTS)
    found = interactive(student, teacher, torch.tensor(7.0), same(TEXTS))
    assert float(found.detach()) == pytest.approx(expected / 2, rel=1e-5)


def test_vectors_are_missed_by_their_squared_distance():
    student, teacher = (unit(1), unit(2)), (unit(3), unit(4))
    expected = 0.0
    for mine, theirs in zip(student, teacher, strict=True):
        for x, y in zip(mine.double().tolist(), theirs.double().tolist(), strict=True):
            expected += sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / 8
    assert float(vectors_missed(student, teacher).detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("which", ["contrastive", "relations", "interactive", "vectors"])
def test_gradients_are_those_of_differences(which):
    """Float64 throughout would not tell float32 products; so the step is wide."""
    read, there = unit(2), (unit(3).detach(), unit(4).detach())
    scale = torch.tensor(2.0)

    def loss(seen: torch.Tensor) -> torch.Tensor:
        scores = similarities(seen, read, scale)
        return {
            "contrastive": lambda: contrastive(scores, same(TEXTS)),
            "relations": lambda: relations(scores, similarities(*there, scale)),
            "interactive": lambda: interactive((seen, read), there, scale, same(TEXTS)),
            "vectors": lambda: vectors_missed((seen, read), there),
        }[which]()

    seen = unit(1)
    loss(seen).backward()
    step = 1e-2
    for place in ((0, 0), (2, 3)):
        moved = torch.zeros(4, 5)
        moved[place] = step
        apart = loss(seen.detach() + moved) - loss(seen.detach() - moved)
        slope = float(apart.detach()) / (2 * step)
        assert seen.grad is not None
        assert float(seen.grad[place]) == pytest.approx(slope, abs=2e-4)
