"""Factors against the optimum: Eckart and Young, SVD-LLM's own way, and perturbations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attar.ops.factor import (
    Factors,
    factored,
    rank_for,
    ranks_below,
    root_of,
    spectrum,
)


def drawn(rows: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def correlated(width: int, seed: int = 0) -> Tensor:
    inputs = drawn(4 * width, width, seed) @ drawn(width, width, seed + 1)
    return inputs.t() @ inputs / len(inputs)


def lost(weight: Tensor, factors: Factors, gram: Tensor) -> float:
    rest = weight.double() - factors.up.double() @ factors.down.double()
    return float(((rest @ gram.double()) * rest).sum())


@pytest.mark.parametrize(("rows", "width"), [(24, 40), (40, 24), (32, 32)])
def test_truncated_leaves_the_smaller_singular_values(rows: int, width: int) -> None:
    weight = drawn(rows, width)
    values = torch.linalg.svdvals(weight.double()).square()
    found = factored(weight, 8)
    assert lost(weight, found, torch.eye(width)) == pytest.approx(float(values[8:].sum()), rel=1e-5)
    assert found.error == pytest.approx(float(values[8:].sum() / values.sum()))


@pytest.mark.parametrize(("rows", "width"), [(24, 40), (40, 24)])
@pytest.mark.parametrize("rank", [1, 5, 20])
def test_whitened_equals_svd_llm_and_beats_plain(rows: int, width: int, rank: int) -> None:
    weight, gram = drawn(rows, width), correlated(width)
    found = factored(weight, rank, root_of(gram))
    root = torch.linalg.cholesky(gram.double())
    u, s, v = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    theirs = Factors(u[:, :rank] * s[:rank], v[:rank] @ torch.linalg.inv(root), 0.0)
    assert lost(weight, found, gram) == pytest.approx(lost(weight, theirs, gram), rel=1e-4)
    assert lost(weight, found, gram) < lost(weight, factored(weight, rank), gram)
    whole = float(((weight.double() @ gram.double()) * weight.double()).sum())
    assert found.error == pytest.approx(lost(weight, found, gram) / whole, rel=1e-4)


def test_weighted_is_the_optimum_for_rows_that_count_differently() -> None:
    weight, importance = drawn(20, 30), drawn(20, 1).square().flatten()
    importance[3] = 0
    found = factored(weight, 6, importance=importance)
    size = importance.double().sqrt()[:, None]
    values = torch.linalg.svdvals(weight.double() * size).square()

    def error(factors: Factors) -> float:
        rest = weight.double() - factors.up.double() @ factors.down.double()
        return float((rest.square() * size.square()).sum())

    assert error(found) == pytest.approx(float(values[6:].sum()), rel=1e-4)
    assert error(found) < error(factored(weight, 6))
    assert found.up.isfinite().all()


def test_no_small_change_makes_whitened_better() -> None:
    weight, gram = drawn(12, 16), correlated(16)
    found = factored(weight, 4, root_of(gram))
    best = lost(weight, found, gram)
    for seed in range(20):
        up = found.up + 1e-3 * drawn(12, 4, seed)
        down = found.down + 1e-3 * drawn(4, 16, seed + 100)
        assert lost(weight, Factors(up, down, 0.0), gram) >= best * (1 - 1e-6)


def test_full_rank_gives_the_weight_back() -> None:
    weight = drawn(10, 14)
    for found in (factored(weight, 10), factored(weight, 10, root_of(correlated(14)))):
        torch.testing.assert_close(found.up @ found.down, weight, atol=1e-5, rtol=1e-4)
        assert found.error == pytest.approx(0.0, abs=1e-12)


def test_a_gram_of_few_inputs_and_none_at_all() -> None:
    weight, few = drawn(8, 64), drawn(3, 64, seed=5)
    found = factored(weight, 3, root_of(few.t() @ few))
    assert lost(weight, found, few.t() @ few) == pytest.approx(0.0, abs=1e-2)
    nothing = factored(weight, 3, root_of(torch.zeros(64, 64)))
    assert nothing.up.isfinite().all()
    assert nothing.down.isfinite().all()
    assert factored(torch.zeros(8, 64), 3, root_of(correlated(64))).up.isfinite().all()


def test_ranks_hold_the_share_asked_for() -> None:
    for rows, width in ((576, 576), (1536, 576), (192, 576)):
        rank = rank_for(rows, width, 0.8)
        assert rank % 8 == 0
        assert 0.8 * rows * width - 8 * (rows + width) < rank * (rows + width) <= 0.8 * rows * width
    assert rank_for(32, 32, 0.3) == 4
    assert rank_for(4, 4, 0.01) == 1


def test_ranks_below_hold_fewer_weights_than_the_whole() -> None:
    for rows, width in ((576, 576), (192, 576), (4, 4), (2, 1)):
        ranks = ranks_below(rows, width)
        assert ranks[0] == 1
        assert ranks == sorted(set(ranks))
        assert all(rank * (rows + width) < rows * width for rank in ranks) or ranks == [1]
    assert ranks_below(576, 576)[-1] == 280


@pytest.mark.parametrize(("rows", "width"), [(24, 40), (40, 24)])
def test_a_spectrum_tells_what_every_rank_loses(rows: int, width: int) -> None:
    weight, gram = drawn(rows, width), correlated(width)
    importance = drawn(rows, 1, seed=9).square().flatten()
    found = spectrum(weight, root_of(gram), importance)
    assert len(found) == min(rows, width)
    for rank in (1, 5, 20):
        factors = factored(weight, rank, root_of(gram), importance)
        rest = (weight - factors.up @ factors.down).double() * importance.double().sqrt()[:, None]
        cost = float(((rest @ gram.double()) * rest).sum())
        assert cost == pytest.approx(float(found[rank:].sum()), rel=1e-3)
        assert factors.error == pytest.approx(float(found[rank:].sum() / found.sum()), rel=1e-6)
        for other in (factored(weight, rank), factored(weight, rank, root_of(gram))):
            rest = (weight - other.up @ other.down).double() * importance.double().sqrt()[:, None]
            assert cost <= float(((rest @ gram.double()) * rest).sum())
