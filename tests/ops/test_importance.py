"""Importance: checked against the definitions, by hand."""

from __future__ import annotations

import pytest
import torch

from attar.ops.importance import (
    activity,
    block_influence,
    head_activity,
    importance,
    strongest,
    strongest_heads,
    strongest_overall,
    taylor,
)

FULL = torch.ones(2, 3, dtype=torch.bool)


def test_block_influence_is_one_minus_the_mean_cosine() -> None:
    before = torch.randn(2, 3, 8)
    assert block_influence(before, 3.0 * before, FULL).item() == pytest.approx(0, abs=1e-6)
    assert block_influence(before, -before, FULL).item() == pytest.approx(2, abs=1e-6)
    turned = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    after = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert block_influence(turned, after, mask).item() == pytest.approx(0.5)


def test_padding_counts_nowhere() -> None:
    before, after = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    spoilt = after.clone()
    spoilt[~mask] = 1e6
    assert block_influence(before, spoilt, mask) == block_influence(before, after, mask)
    assert torch.equal(activity(spoilt, mask), activity(after, mask))
    assert torch.equal(head_activity(spoilt, mask, 2), head_activity(after, mask, 2))


def test_activity_is_the_mean_size_over_a_sequence() -> None:
    values = torch.tensor([[[1.0, -2.0], [3.0, 4.0], [-5.0, 0.0]]])
    mask = torch.tensor([[True, True, False]])
    assert activity(values, mask).tolist() == [[2.0, 3.0]]


def test_a_heads_activity_is_the_norm_of_its_output() -> None:
    values = torch.tensor([[[3.0, 4.0, 0.0, 1.0]]])
    assert head_activity(values, torch.ones(1, 1, dtype=torch.bool), 2).tolist() == [[5.0, 1.0]]


def test_importance_is_the_norm_over_sequences() -> None:
    assert importance(torch.tensor([[3.0, 1.0], [4.0, 1.0]])).tolist() == pytest.approx([5, 2**0.5])


def test_strongest_are_in_ascending_order_and_of_equals_the_first() -> None:
    assert strongest(torch.tensor([1.0, 5.0, 3.0, 5.0]), 2) == [1, 3]
    assert strongest(torch.tensor([2.0, 2.0, 2.0]), 2) == [0, 1]


def test_strongest_heads_go_by_group() -> None:
    scores = torch.tensor([9.0, 0.0, 4.0, 4.0, 1.0, 5.0])  # three groups of two
    assert strongest_heads(scores, 3, 2, 2) == [0, 1, 2, 3]
    assert strongest_heads(scores, 3, 2, 1) == [0, 5]
    assert strongest_heads(scores, 3, 3, 1) == [0, 2, 5]
    assert strongest_heads(scores, 6, 2, 1) == [0, 5]


def test_taylor_is_exact_where_the_loss_is_linear() -> None:
    values, slopes = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    values.requires_grad_()
    (values * slopes).sum().backward()
    found = taylor(values.detach(), values.grad, 4)
    for unit in range(4):
        without = values.detach().clone()
        without[..., 2 * unit : 2 * unit + 2] = 0
        lost = ((values.detach() - without) * slopes).sum((1, 2))
        torch.testing.assert_close(found[:, unit], lost.abs())


def test_the_best_of_all_lists_stay() -> None:
    scores = [torch.tensor([5.0, 1.0, 4.0]), torch.tensor([0.1, 0.3]), torch.tensor([2.0, 3.0])]
    assert strongest_overall(scores, 5) == [[0, 2], [1], [0, 1]]
    assert strongest_overall(scores, 1) == [[0], [1], [1]]  # one of each
    assert strongest_overall(scores, 7) == [[0, 1, 2], [0, 1], [0, 1]]


def test_lots_go_together() -> None:
    first = torch.tensor([9.0, 0.0, 8.0, 7.0, 1.0])  # lots of 8.5, 4 and 0
    second = torch.tensor([5.0, 5.0, 4.5, 4.5])  # 5 and 4.5
    assert strongest_overall([first, second], 6, 2) == [[0, 2], [0, 1, 2, 3]]
    assert strongest_overall([first, second], 8, 2) == [[0, 2, 3, 4], [0, 1, 2, 3]]
    assert strongest_overall([first, second], 9, 2) == [[0, 1, 2, 3, 4], [0, 1, 2, 3]]
