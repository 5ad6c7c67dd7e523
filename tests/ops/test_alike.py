"""Likeness of hidden states and relations, written out in float64, and brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor

from attar.ops.alike import (
    alignment,
    attention_scores,
    in_order,
    info_nce,
    maps_kl,
    missed,
    relations_kl,
    scores_missed,
    similarities_missed,
    turned,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MASK = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])


def test_what_states_miss_and_how_they_are_turned() -> None:
    own, other = drawn(2, 7, 6), drawn(2, 7, 6, seed=1)
    above = below = angles = 0.0
    for row, place in MASK.nonzero().tolist():
        one, two = own[row, place].double(), other[row, place].double()
        above += float(((one - two) ** 2).sum())
        below += float((two**2).sum())
        angles += 1 - float(one @ two / (one.norm() * two.norm()))
    assert missed(own, other, MASK).item() == pytest.approx(above / below)
    assert turned(own, other, MASK).item() == pytest.approx(angles / 11)
    assert missed(other, other, MASK).item() == 0.0


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_relations_are_the_papers(heads: int) -> None:
    own, other = drawn(2, 7, 8), drawn(2, 7, 16, seed=1)  # widths may differ
    total = 0.0
    for row, place in MASK.nonzero().tolist():
        real = MASK[row]
        for head in range(heads):
            logs: list[Tensor] = []
            for values in (other, own):
                size = values.shape[-1] // heads
                part = values[row, :, head * size : (head + 1) * size].double()
                scores = (part[place] @ part.t() / size**0.5)[real]
                logs.append(scores - scores.logsumexp(0))
            total += float((logs[0].exp() * (logs[0] - logs[1])).sum()) / heads
    assert relations_kl(own, other, heads, MASK).item() == pytest.approx(total / 11, rel=1e-5)
    assert relations_kl(other, other, heads, MASK).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("heads", [4, 2])
def test_maps_are_compared_head_by_head_or_in_the_mean(heads: int) -> None:
    own, other = drawn(2, 4, 7, 7).softmax(-1), drawn(2, heads, 7, 7, seed=1).softmax(-1)
    total = 0.0
    for row, place in MASK.nonzero().tolist():
        one, two = own[row, :, place].double(), other[row, :, place].double()
        if heads != 4:
            one, two = one.mean(0), two.mean(0)
        total += float((two * (two / one).log()).sum()) / (4 if heads == 4 else 1)
    assert maps_kl(own, other, MASK).item() == pytest.approx(total / 11, rel=1e-5)
    assert maps_kl(other, other, MASK).item() == pytest.approx(0.0, abs=1e-6)


def test_scores_are_missed_by_squares_over_heads_and_pairs_of_real_tokens() -> None:
    own, other = drawn(2, 3, 7, 7), drawn(2, 3, 7, 7, seed=1)
    start, exact = own.clone().requires_grad_(True), own.double().requires_grad_(True)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, real in enumerate(MASK.sum(1).tolist()):
        for head in range(3):
            for i in range(real):
                for j in range(real):
                    miss = exact[row, head, i, j] - other[row, head, i, j].double()
                    total, count = total + miss**2, count + 1
    (total / count).backward()
    value = scores_missed(start, other, MASK)
    value.backward()
    assert count == 3 * (7 * 7 + 4 * 4)
    assert value.item() == pytest.approx((total / count).item(), rel=1e-6)
    assert start.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(start.grad, exact.grad.float(), rtol=1e-5, atol=1e-8)


def test_scores_of_padding_count_for_nothing() -> None:
    own, other = drawn(2, 3, 7, 7), drawn(2, 3, 7, 7, seed=1)
    expected = scores_missed(own, other, MASK)
    own[1, :, 4:], other[1, :, :, 4:] = torch.inf, torch.nan
    own.requires_grad_(True)
    value = scores_missed(own, other, MASK)
    value.backward()
    assert value.item() == expected.item()
    assert own.grad is not None
    assert own.grad[1, :, 4:].abs().max() == own.grad[1, :, :, 4:].abs().max() == 0
    assert own.grad[1, :, :4, :4].abs().min() > 0


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_scores_are_products_of_queries_and_keys(heads: int) -> None:
    queries, keys, way = drawn(2, 7, 8), drawn(2, 7, 8, seed=1), drawn(2, heads, 7, 7, seed=2)
    starts = [part.clone().requires_grad_(True) for part in (queries, keys)]
    exact = [part.double().requires_grad_(True) for part in (queries, keys)]
    cut = [part.reshape(2, 7, heads, 8 // heads) for part in exact]
    wanted = torch.einsum("bihd,bjhd->bhij", *cut) / math.sqrt(8 // heads)
    found = attention_scores(starts[0], starts[1], heads)
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-6)
    (found * way).sum().backward()
    (wanted * way).sum().backward()
    for start, other in zip(starts, exact, strict=True):
        assert start.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(start.grad, other.grad.float(), rtol=1e-5, atol=1e-5)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "missed": lambda own, other: missed(own, other, MASK),
    "turned": lambda own, other: turned(own, other, MASK),
    "relations": lambda own, other: relations_kl(own, other, 2, MASK),
    "maps": lambda own, other: maps_kl(
        own[:, None].expand(-1, 2, -1, -1)[..., :7].softmax(-1),
        other[:, None, :, :7].softmax(-1),
        MASK,
    ),
    "scores": lambda own, other: scores_missed(
        attention_scores(own, other, 2), attention_scores(other, other, 2), MASK
    ),
    "similarities": lambda own, other: similarities_missed(own[:, 0], other[:, 0]),
    "contrast": lambda own, other: info_nce(own[:, 0], other[:, 0], 0.1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_slopes_are_those_of_differences_in_float64(name: str) -> None:
    """Along a direction, of the loss as it is; it computes in float32, so by large steps."""
    own, other, way = drawn(2, 7, 8), drawn(2, 7, 8, seed=1), drawn(2, 7, 8, seed=2)
    start = own.clone().requires_grad_(True)
    LOSSES[name](start, other).backward()
    assert start.grad is not None
    slope = float((start.grad * way).sum())
    step = 1e-2
    ahead, behind = (float(LOSSES[name](own + s * way, other)) for s in (step, -step))
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=2e-3, abs=2e-5)


def test_alignment_knows_no_rotation_and_no_scale() -> None:
    states, other = drawn(50, 6), drawn(50, 9, seed=1)
    rotation = torch.linalg.qr(drawn(6, 6, seed=2)).Q
    assert alignment(states, 3 * states @ rotation + 1).item() == pytest.approx(1.0)
    assert 0 < alignment(states, other).item() < 0.9


@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_all_ascending_choices(seed: int) -> None:
    scores = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed))
    choices = [(*chosen, 5) for chosen in combinations(range(5), 2)]
    best = max(choices, key=lambda chosen: sum(float(scores[i, c]) for i, c in enumerate(chosen)))
    assert in_order(scores) == list(best)


def test_similarities_and_contrast_are_their_formulae() -> None:
    own, other = drawn(5, 6), drawn(5, 9, seed=1)  # widths may differ
    one, two = own.double(), other.double()
    cosines = [
        [[float(a @ b / (a.norm() * b.norm())) for b in part] for a in part] for part in (one, two)
    ]
    total = sum(
        (cosines[0][i][j] - cosines[1][i][j]) ** 2 for i in range(5) for j in range(5) if i != j
    )
    assert similarities_missed(own, other).item() == pytest.approx(total / 20, rel=1e-5)
    assert similarities_missed(own[:1], other[:1]).item() == 0.0
    assert similarities_missed(own, 3 * own).item() == pytest.approx(0, abs=1e-10)
    there = drawn(5, 6, seed=2)
    nats = 0.0
    for place, vector in enumerate(one):
        scores = [float(vector @ b / (vector.norm() * b.norm())) / 0.1 for b in there.double()]
        nats += math.log(sum(math.exp(score) for score in scores)) - scores[place]
    assert info_nce(own, there, 0.1).item() == pytest.approx(nats / 5, rel=1e-5)


def test_autocast_rounds_nothing() -> None:
    own, other = drawn(2, 7, 8), drawn(2, 7, 8, seed=1)

    def every() -> list[float]:
        one, two = own.mean(1), other.mean(1)
        missing = scores_missed(attention_scores(own, other, 2), drawn(2, 2, 7, 7), MASK)
        found = (relations_kl(own, other, 2, MASK), missing, similarities_missed(one, two))
        return [float(value) for value in (*found, info_nce(one, two, 0.05))]

    exact = every()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert every() == exact
