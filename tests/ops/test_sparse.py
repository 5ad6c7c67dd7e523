"""Pruning single linears: against brute force, least squares in float64, and the formulas."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from attar.ops.sparse import (
    Pattern,
    cubic,
    refit,
    regrowing,
    scored,
    sparsegpt,
    sparsegpt_each,
    wanda_scores,
)

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


def test_near_the_exact_optimum_on_average() -> None:
    """Of 40 rows of six weights; three that are drawn cost far more, with their best values too."""
    optimum, found, any_three = 0.0, 0.0, 0.0
    masks = [
        torch.zeros(1, 6, dtype=torch.bool).index_fill_(1, torch.tensor(kept), True)
        for kept in itertools.combinations(range(6), 3)
    ]
    for seed in range(40):
        weight, gram = drawn(1, 6, seed), damped(correlated(6, seed))
        costs = [objective(weight, least_squares(weight, mask, gram), gram) for mask in masks]
        optimum, any_three = optimum + min(costs), any_three + sum(costs) / len(costs)
        found += objective(weight, sparsegpt(weight, correlated(6, seed), HALF, refits=6), gram)
    assert optimum <= found < 0.25 * any_three


@pytest.mark.parametrize("pattern", [HALF, TWO_OF_FOUR])
def test_the_columns_are_those_of_eliminations_in_float64(pattern: Pattern) -> None:
    """Algorithm 1 as it is derived: each error by the inverse, then a column eliminated from it."""
    weight, gram = drawn(8, 96), correlated(96)
    inverse = torch.linalg.inv(damped(gram).double())
    moves, diagonal = torch.zeros(96, 96, dtype=torch.float64), []
    for column in range(96):
        moves[column, column:] = inverse[column, column:] / inverse[column, column]
        diagonal.append(inverse[column, column].clone())
        inverse = inverse - inverse[:, [column]] @ inverse[[column]] / inverse[column, column]
    energy = torch.stack(diagonal)
    rest, run = weight.double().clone(), pattern.run or 96
    keep = torch.ones_like(rest, dtype=torch.bool)
    for column in range(96):
        if column % run == 0:
            span = slice(column, column + run)
            keep[:, span] = pattern.together(rest[:, span].square() / energy[span])
        error = rest[:, column] * ~keep[:, column]
        rest -= error[:, None] * moves[column]
    found = sparsegpt(weight, gram, pattern).double()
    torch.testing.assert_close(found, rest * keep, atol=1e-3, rtol=1e-3)


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


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_the_cubic_schedule_is_the_papers(start: float) -> None:
    """Equation 1: s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3."""
    for step in range(11):
        expected = 0.9 + (start - 0.9) * (1 - step / 10) ** 3
        assert cubic(start, 0.9, step / 10) == pytest.approx(expected, rel=1e-12)
    assert cubic(start, 0.9, 0.0) == pytest.approx(start)
    assert cubic(start, 0.9, 1.0) == cubic(start, 0.9, 1.5) == 0.9


@pytest.mark.parametrize("levels", [1000, 3])
def test_the_highest_of_equal_scores_are_the_first(levels: int) -> None:
    scores = (drawn(4, 30) * levels / 3).round()
    for sparsity in (0.0, 0.3, 0.5, 1.0):
        order = scores.flatten().argsort(descending=True, stable=True)
        stay = order[: 120 - round(120 * sparsity)].tolist()
        expected = torch.zeros(120, dtype=torch.bool)
        expected[stay] = True
        assert torch.equal(Pattern(sparsity).together(scores).flatten(), expected)


@pytest.mark.parametrize("width", [16, 18])
def test_a_pattern_comes_run_by_run_the_cheapest_first(width: int) -> None:
    scores = drawn(3, width)
    runs = [(row, start) for row in range(3) for start in range(0, width, 4)]

    def lost(run: tuple[int, int]) -> float:
        row, start = run
        own = sorted(scores[row, start : min(start + 4, width)].tolist())
        return sum(own[: max(0, len(own) - 2)])

    for share in (0.0, 0.4, 1.0):
        keep = torch.ones(3, width, dtype=torch.bool)
        for row, start in sorted(runs, key=lost)[: round(len(runs) * share)]:
            order = scores[row, start : start + 4].argsort(descending=True)
            keep[row, start + order[2:]] = False
        assert torch.equal(TWO_OF_FOUR.partly(scores, share), keep)
    assert torch.equal(TWO_OF_FOUR.partly(scores, 1.0), TWO_OF_FOUR.together(scores))


def test_a_share_of_the_sparsity() -> None:
    scores = drawn(10, 40)
    assert torch.equal(HALF.partly(scores, 0.5), Pattern(0.25).together(scores))


def test_masked_weights_learn_as_if_they_were_there() -> None:
    weight, slope = drawn(4, 6).double().requires_grad_(), drawn(4, 6, 2).double()
    keep = drawn(4, 6, 3) > 0
    found = regrowing(weight, keep)
    assert torch.equal(found, weight * keep)
    found.backward(slope)
    torch.testing.assert_close(weight.grad, slope, rtol=0, atol=0)


def test_scores_learn_what_their_weights_would_be_worth() -> None:
    """d(loss)/dS = d(loss)/dW' W, against the loss's change as the mask's entries change."""
    weight, inputs = drawn(4, 6).double(), drawn(9, 6, 4).double()
    keep, target = drawn(4, 6, 3) > 0, drawn(9, 4, 5).double()

    def loss(seen: Tensor) -> Tensor:
        return (inputs @ seen.t() - target).square().sum()

    mask = keep.double().requires_grad_()
    loss(weight * mask).backward()
    given, scores = weight.clone().requires_grad_(), drawn(4, 6, 6).double().requires_grad_()
    seen = scored(given, scores, keep)
    assert torch.equal(seen, weight * keep)
    loss(seen).backward()
    torch.testing.assert_close(scores.grad, mask.grad, rtol=1e-12, atol=1e-12)
    assert torch.equal(given.grad != 0, keep)


@pytest.mark.parametrize("pattern", [HALF, TWO_OF_FOUR])
def test_linears_that_share_inputs_are_pruned_as_each_alone(pattern: Pattern) -> None:
    gram = correlated(160, 3)
    gram[5] = gram[:, 5] = 0
    weights = [drawn(rows, 160, rows) * rows for rows in (12, 40, 7)]
    together = list(sparsegpt_each(weights, gram, pattern, refits=4))
    for weight, found in zip(weights, together, strict=True):
        alone = sparsegpt(weight, gram, pattern, refits=4)
        assert torch.equal(found == 0, alone == 0)
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
