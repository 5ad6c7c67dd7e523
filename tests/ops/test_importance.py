"""Importance: checked against the definitions, by hand."""

from __future__ import annotations

import numpy as np
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_is_its_formula_in_float64(dtype: torch.dtype) -> None:
    """On rows cut to their length, of which one holds no token."""
    generator, lengths = torch.Generator().manual_seed(0), (50, 31, 1, 0)
    made = 100 * torch.randn(4, 50, 12, generator=generator) + 30
    values = made.to(dtype)
    others = (made + 60 * torch.randn(4, 50, 12, generator=generator)).to(dtype)
    mask = torch.arange(50)[None] < torch.tensor(lengths)[:, None]
    one, two = values.double().numpy(), others.double().numpy()
    cut = [(x[:length], y[:length]) for x, y, length in zip(one, two, lengths, strict=True)]

    dots = np.concatenate([(x * y).sum(1) for x, y in cut])
    norms = np.concatenate([np.sqrt((x**2).sum(1) * (y**2).sum(1)) for x, y in cut])
    influence = block_influence(values, others, mask).item()
    assert influence == pytest.approx((1 - dots / norms).mean(), rel=1e-4)

    sizes = [np.abs(x).sum(0) / max(len(x), 1) for x, _ in cut]
    found = activity(values, mask)
    np.testing.assert_allclose(found, sizes, rtol=1e-5)
    np.testing.assert_allclose(importance(found), np.sqrt((np.array(sizes) ** 2).sum(0)), rtol=1e-5)

    heads = [x.reshape(len(x), 3, 4) for x, _ in cut]
    norms = [np.sqrt((x**2).sum(2)).sum(0) / max(len(x), 1) for x in heads]
    np.testing.assert_allclose(head_activity(values, mask, 3), norms, rtol=1e-5)

    changes = np.einsum("rthi,rthi->rh", *(x.reshape(4, 50, 3, 4) for x in (one, two)))
    np.testing.assert_allclose(taylor(values, others, 3), np.abs(changes), rtol=1e-5)


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
