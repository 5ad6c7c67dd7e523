"""Making up for inputs that go: against least squares and brute force in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attar.ops.gram import Gram
from attar.ops.removal import costs_of_folding, fold, refit

ROWS, WIDTH, TOKENS = 5, 12, 400


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [rows, width] and inputs [tokens, width] that hang together."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    inputs = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    mix = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) / 3
    return weight, inputs + inputs @ mix


def gram_of(inputs: Tensor) -> Tensor:
    return inputs.t() @ inputs / len(inputs)


def lost(weight: Tensor, inputs: Tensor, new: Tensor, kept: list[int]) -> float:
    """The mean squared error of the outputs."""
    return float((inputs @ weight.t() - inputs[:, kept] @ new.t()).square().sum() / len(inputs))


@pytest.mark.parametrize("kept", [[0, 2, 3, 7, 11], [5], list(range(11))])
@pytest.mark.parametrize(("tokens", "damping"), [(10**6, 0.01), (20, None)])
def test_refitting_is_least_squares_held_to_the_old_weights(kept, tokens, damping) -> None:
    weight, inputs = drawn()
    gram = gram_of(inputs)
    damping = damping or len(kept) / tokens
    pull = (damping * gram.diagonal()[kept] * TOKENS).sqrt()
    tall = torch.cat([inputs[:, kept], pull.diag()])
    goal = torch.cat([inputs @ weight.t(), pull[:, None] * weight[:, kept].t()])
    expected = torch.linalg.lstsq(tall, goal).solution.t()
    torch.testing.assert_close(refit(weight, gram, kept, tokens), expected)


def test_refitting_brings_back_what_others_hold() -> None:
    weight, inputs = drawn()
    inputs[:, 4] = 0.5 * inputs[:, 1] - 2 * inputs[:, 8]
    kept = [index for index in range(WIDTH) if index != 4]
    gram = gram_of(inputs)
    without = lost(weight, inputs, weight[:, kept], kept)
    assert lost(weight, inputs, refit(weight, gram, kept, 10**6), kept) < 1e-2 * without


def test_refitting_bears_inputs_that_are_never_there() -> None:
    weight, _ = drawn()
    gram = torch.zeros(WIDTH, WIDTH)
    assert torch.equal(refit(weight, gram, [3, 1], 9), weight[:, [3, 1]])
    assert refit(weight.bfloat16(), gram, [3], 9).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [1, 3])
def test_a_unit_is_folded_onto_the_one_that_stands_for_it(size: int) -> None:
    weight, inputs = drawn()
    turn = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs[:, :size] = inputs[:, 2 * size : 3 * size] @ turn
    kept = list(range(1, WIDTH // size))
    columns = list(range(size, WIDTH))
    new = fold(weight, gram_of(inputs), kept, size)
    torch.testing.assert_close(inputs[:, columns] @ new.t(), inputs @ weight.t(), atol=1e-5, rtol=0)
    same = [index for index in columns if not 2 * size <= index < 3 * size]
    assert torch.equal(new[:, [index - size for index in same]], weight[:, same])


def brute(weight: Tensor, inputs: Tensor, size: int) -> list[tuple[int, float]]:
    """Units in the order they go, and what each costs: every pair is solved, every time."""
    own = {unit: weight[:, unit * size :][:, :size].clone() for unit in range(WIDTH // size)}
    given = {unit: inputs[:, unit * size :][:, :size] for unit in own}
    gone: list[tuple[int, float]] = []
    while len(own) > 1:
        trials = []
        for unit in own:
            for heir in own.keys() - {unit}:
                share = torch.linalg.lstsq(given[heir], given[unit]).solution
                missing = (given[unit] - given[heir] @ share) @ own[unit].t()
                trials.append((float(missing.square().sum()) / TOKENS, unit, heir, share))
        cost, unit, heir, share = min(trials, key=lambda trial: trial[0])
        own[heir] += own.pop(unit) @ share.t()
        gone.append((unit, cost))
    return gone


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_costs_are_those_of_trying_every_pair(size: int, seed: int) -> None:
    weight, inputs = drawn(seed)
    gram = gram_of(inputs)
    whole = float((weight @ gram * weight).sum())
    costs = costs_of_folding(weight, gram, size)
    least = 0.0
    for unit, cost in brute(weight, inputs, size):
        least = max(least, cost)
        assert float(costs[unit]) == pytest.approx(least / whole, rel=1e-5)


def test_equal_units_go_for_nothing_but_the_last() -> None:
    weight, inputs = drawn()
    inputs[:, [2, 5, 9]] = inputs[:, [0]] * torch.tensor([1.0, -3.0, 0.5], dtype=torch.float64)
    costs = costs_of_folding(weight, gram_of(inputs))
    free = [unit for unit in (0, 2, 5, 9) if costs[unit] < 1e-6]
    assert len(free) == 3


@pytest.mark.parametrize("tokens", [1, 20, 60])
def test_folding_bears_fewer_tokens_than_a_unit_is_wide(tokens) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(tokens, 256, generator=generator)
    inputs[:, :64] *= 100  # a unit far above the others
    gram = Gram(256)
    gram.add(inputs)
    weight = torch.randn(ROWS, 256, generator=generator)
    costs = costs_of_folding(weight, gram.mean, 64)
    assert costs.isfinite().all()
    assert 0 <= costs.min() <= costs.max() <= 1.01
