"""Pruning single linears: against brute force, least squares in float64, and the formulas."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from attar.ops.sparse import Pattern, refit, sparsegpt, wanda_scores

HALF, TWO_OF_FOUR = Pattern(0.5), Pattern(0.5, 2, 4)


def correlated(width: int, seed: int = 0) -> Tensor:
    """The gram matrix of inputs that go together."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * width, width, generator=generator)
    inputs = inputs @ torch.randn(width, width, generator=generator)
    return inputs.t() @ inputs / len(inputs)


def drawn(rows: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def damped(gram: Tensor) -> Tensor:
    """The gram that the solver works on."""
    return gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))


def objective(weight: Tensor, pruned: Tensor, gram: Tensor) -> float:
    rest = (weight - pruned).double()
    return float(((rest @ gram.double()) * rest).sum())


def least_squares(weight: Tensor, keep: Tensor, gram: Tensor) -> Tensor:
    """The best weights with these zeros, row by row in float64."""
    found = torch.zeros_like(weight, dtype=torch.float64)
    gram = gram.double()
    for row, (values, mask) in enumerate(zip(weight.double(), keep, strict=True)):
        inner = gram[mask][:, mask]
        found[row, mask] = torch.linalg.solve(inner, gram[mask] @ values)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_never_below_the_exact_optimum(seed: int) -> None:
    """All 20 ways to keep three of six weights, each with its best values."""
    weight, gram = drawn(1, 6, seed), damped(correlated(6, seed))
    best = min(
        objective(weight, least_squares(weight, mask, gram), gram)
        for kept in itertools.combinations(range(6), 3)
        for mask in [torch.zeros(1, 6, dtype=torch.bool).index_fill_(1, torch.tensor(kept), True)]
    )
    found = sparsegpt(weight, correlated(6, seed), HALF, refits=6)
    assert (found != 0).sum() == 3
    assert best * 0.999 <= objective(weight, found, gram)


@pytest.mark.parametrize("pattern", [HALF, TWO_OF_FOUR])
def test_beats_magnitude_and_wanda_by_far(pattern: Pattern) -> None:
    weight, gram = drawn(24, 192), correlated(192)
    found = objective(weight, sparsegpt(weight, gram, pattern, refits=8), gram)
    for scores in (weight.abs(), wanda_scores(weight, gram.diagonal())):
        assert found < 0.5 * objective(weight, weight * pattern.by_row(scores), gram)


@pytest.mark.parametrize("pattern", [HALF, TWO_OF_FOUR, Pattern(0.75, 1, 4), Pattern(0.8)])
def test_refitting_ends_at_the_least_squares_solution(pattern: Pattern) -> None:
    weight, gram = drawn(12, 96), correlated(96)
    errors = [
        objective(weight, sparsegpt(weight, gram, pattern, refits), damped(gram))
        for refits in (0, 2, 8, 200)
    ]
    assert errors == sorted(errors, reverse=True)
    keep = sparsegpt(weight, gram, pattern) != 0
    best = objective(weight, least_squares(weight, keep, damped(gram)), damped(gram))
    assert errors[-1] == pytest.approx(best, rel=1e-3)
    assert errors[0] > best * 1.01


def test_a_refit_without_zeros_gives_the_weight_back() -> None:
    weight, keep = drawn(4, 32), torch.ones(4, 32, dtype=torch.bool)
    found = refit(weight, weight * 0.5, keep, correlated(32) + torch.eye(32), 100)
    torch.testing.assert_close(found, weight, atol=1e-3, rtol=1e-3)


def test_how_many_stay() -> None:
    weight, gram = drawn(16, 130), correlated(130)
    assert (HALF.by_row(weight.abs()).sum(1) == 65).all()
    assert int(Pattern(0.3).together(weight.abs()).sum()) == 16 * 130 - round(16 * 130 * 0.3)
    for keep in (TWO_OF_FOUR.by_row(weight.abs()), sparsegpt(weight, gram, TWO_OF_FOUR) != 0):
        assert (keep[:, :128].reshape(16, 32, 4).sum(2) == 2).all()
        assert (keep[:, 128:].sum(1) == 2).all()  # a run that is cut short loses none
    share = (sparsegpt(weight, gram, Pattern(0.7)) != 0).float().mean()
    assert share == pytest.approx(0.3, abs=0.01)


def test_of_equal_weights_no_more_go_than_asked_for() -> None:
    assert int(HALF.together(torch.ones(8, 10)).sum()) == 40
    assert (TWO_OF_FOUR.by_row(torch.ones(8, 12)).sum(1) == 6).all()


def test_wanda_is_its_formula() -> None:
    weight, inputs = drawn(6, 10), drawn(50, 10, seed=2)
    scores = wanda_scores(weight, inputs.square().mean(0))
    expected = weight.abs() * inputs.norm(dim=0) / 50**0.5
    torch.testing.assert_close(scores, expected)


def test_dead_inputs_and_a_gram_that_is_not_definite() -> None:
    weight, few = drawn(8, 64), drawn(3, 64, seed=5)
    few[:, 7] = 0
    found = sparsegpt(weight, few.t() @ few, HALF, refits=8)
    assert found.isfinite().all()
    assert (found[:, 7] == 0).all()
    assert sparsegpt(weight, torch.zeros(64, 64), HALF, refits=8).isfinite().all()
