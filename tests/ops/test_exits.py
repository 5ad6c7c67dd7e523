"""Leaving early: entropies against float64, and sweeps against brute force."""

from __future__ import annotations

import math

import pytest
import torch

from attar.ops.exits import leaves, leaving, sweep, uncertainty, widest


def rows(seed: int = 0, exits: int = 3, count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    unsure = torch.rand(exits, count, generator=generator)
    return unsure, torch.rand(exits, count, generator=generator) > unsure / 2


def brute(unsure: torch.Tensor, agreed: torch.Tensor, threshold: float) -> tuple[list[int], float]:
    exits, count = unsure.shape
    counts, right = [0] * (exits + 1), 0
    for row in range(count):
        sure = [e for e in range(exits) if threshold > 0 and unsure[e, row] <= threshold]
        at = sure[0] if sure else exits
        counts[at] += 1
        right += at == exits or bool(agreed[at, row])
    return counts, right / count


def test_uncertainty_is_the_entropy_over_the_highest_there_is() -> None:
    logits = 4 * torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    p = logits.double().softmax(-1)
    wanted = -(p * p.log()).sum(-1) / math.log(7)
    torch.testing.assert_close(uncertainty(logits).double(), wanted, atol=1e-6, rtol=1e-6)


def test_uncertainty_from_one_sure_class_to_none() -> None:
    logits = torch.tensor([[1000.0, 0.0, -1000.0], [3.0, 3.0, 3.0]])
    assert uncertainty(logits)[0] == 0.0
    assert uncertainty(logits)[1] == pytest.approx(1.0, abs=1e-6)
    assert uncertainty(logits.bfloat16()).dtype == torch.float32


def test_all_leave_at_one_and_none_at_zero() -> None:
    unsure = torch.cat([uncertainty(torch.zeros(200, n)) for n in (2, 3, 5, 7)] + [torch.zeros(1)])
    assert leaves(unsure, 1.0).all()
    assert not leaves(unsure, 0.0).any()


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_leaving_is_what_row_by_row_comes_out(threshold: float) -> None:
    unsure, agreed = rows()
    found = leaving(unsure, agreed, threshold)
    counts, agreement = brute(unsure, agreed, threshold)
    assert list(found.counts) == counts
    assert found.agreement == pytest.approx(agreement)
    blocks = [1, 2, 4, 6]
    assert found.mean(blocks) == sum(c * b for c, b in zip(counts, blocks, strict=True)) / 40


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lost", [0.0, 0.05, 0.2, 1.0])
def test_the_widest_threshold_is_the_largest_that_holds(seed: int, lost: float) -> None:
    unsure, agreed = rows(seed)
    candidates = [0.0, *unsure.flatten().tolist(), 1.0]
    kept = [t for t in candidates if brute(unsure, agreed, t)[1] >= 1 - lost - 1e-9]
    assert widest(sweep(unsure, agreed), lost).threshold == max(kept)


def test_a_sweep_of_many_rows_is_thinned() -> None:
    found = sweep(*rows(count=2000), most=100)
    assert len(found) <= 102
    assert [each.threshold for each in found] == sorted({each.threshold for each in found})
    assert (found[0].threshold, found[-1].threshold) == (0.0, 1.0)
