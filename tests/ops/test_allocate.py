"""Sharing out against every possible choice, on sizes where all of them can be tried."""

from __future__ import annotations

import random
from itertools import product

import pytest

from attar.ops.allocate import losses_between, share_out


def total(table: list[list[float]], choice: tuple[int, ...] | list[int]) -> float:
    return sum(row[index] for row, index in zip(table, choice, strict=True))


@pytest.mark.parametrize("seed", range(30))
def test_near_the_best_of_all_choices(seed: int) -> None:
    rng = random.Random(seed)
    losses = [sorted((rng.random() for _ in range(4)), reverse=True) for _ in range(6)]
    costs = [[bits * rng.choice((1.0, 2.0, 3.0)) for bits in (2, 3, 4, 8)] for _ in range(6)]
    costs = [sorted(row) for row in costs]
    budget = 1.4 * sum(row[0] for row in costs)
    found = share_out(losses, costs, budget)
    assert total(costs, found) <= budget
    fitting = [c for c in product(range(4), repeat=6) if total(costs, c) <= budget]
    best = min(total(losses, choice) for choice in fitting)
    dearest_step = max(b - a for row in losses for a, b in zip(row[1:], row, strict=False))
    assert total(losses, found) <= best + dearest_step  # what the last step leaves over


def test_exact_where_the_steps_fill_the_budget() -> None:
    losses = [[8.0, 1.0, 0.5], [4.0, 3.0, 0.0], [9.0, 8.0, 7.9]]
    costs = [[2.0, 3.0, 4.0]] * 3
    for budget in (6, 7, 9):
        found = share_out(losses, costs, budget)
        choices = [c for c in product(range(3), repeat=3) if total(costs, c) <= budget]
        assert total(losses, found) == min(total(losses, choice) for choice in choices)


def test_a_dearer_setting_that_is_no_better_is_never_taken() -> None:
    assert share_out([[1.0, 2.0, 0.5]], [[1.0, 2.0, 3.0]], 2.5) == [0]
    assert share_out([[1.0, 2.0, 0.5]], [[1.0, 2.0, 3.0]], 3.0) == [2]


def test_a_budget_below_the_cheapest_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cost 4, and the budget is 3"):
        share_out([[1.0, 0.0]] * 2, [[2.0, 3.0]] * 2, 3.0)


def test_losses_between_those_tried_rise_geometrically() -> None:
    found = losses_between([4.0, 6.0, 8.0], [1.0, 0.25, 0.0625], [4, 5, 6, 7, 8])
    assert found == pytest.approx([1.0, 0.5, 0.25, 0.125, 0.0625])
    assert losses_between([3.0], [0.5], [3.0]) == pytest.approx([0.5])
    assert losses_between([3.0, 3.0], [0.5, 0.5], [3.0]) == pytest.approx([0.5])


def test_what_costs_less_never_counts_as_losing_less() -> None:
    found = losses_between([4.0, 6.0, 8.0], [0.1, 0.3, -0.01], [4, 4.5, 5, 5.5, 6, 7, 8])
    assert found[:5] == pytest.approx([0.3] * 5)
    assert found == sorted(found, reverse=True)
    assert found[-1] > 0


def test_the_budget_is_spent_where_nothing_is_lost() -> None:
    costs = [3 + 4 * step / 100 for step in range(101)]
    losses = [losses_between([3, 5, 7], [0.0] * 3, costs)] * 5
    losses.append(losses_between([3, 5, 7], [9.0, 3.0, 1.0], costs))
    chosen = [costs[at] for at in share_out(losses, [costs] * 6, 5 * 6)]
    assert sum(chosen) == pytest.approx(30, abs=0.05)
    assert chosen[-1] == 7
    assert max(chosen[:5]) - min(chosen[:5]) < 0.05
