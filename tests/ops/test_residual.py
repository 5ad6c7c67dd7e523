"""Factors and a coarse rest: never worse than the rest alone, and exact where they can be."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from attar.core.grid import Grid
from attar.ops.gptq import solve
from attar.ops.gram import lost_share
from attar.ops.residual import Parts, parted
from attar.ops.rounding import dequantize

THIN, COARSE = Grid.parse("int8-channel"), Grid.parse("int3-g32")


def drawn(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def gram_of(width: int) -> Tensor:
    inputs = drawn(4 * width, width, 1) @ drawn(width, width, 2)
    return inputs.t() @ inputs / len(inputs)


def whole(found: Parts) -> Tensor:
    return dequantize(found.up, THIN) @ dequantize(found.down, THIN) + dequantize(
        found.rest, COARSE
    )


@pytest.mark.parametrize(("rows", "width", "rank"), [(48, 64, 8), (64, 48, 4), (20, 100, 8)])
def test_factors_win_back_what_coarse_codes_lose(rows: int, width: int, rank: int) -> None:
    weight, gram = drawn(rows, width, 3), gram_of(width)
    alone = dequantize(solve(weight, gram, COARSE), COARSE)
    found = [parted(weight, gram, rank, THIN, COARSE, rounds) for rounds in (1, 3)]
    errors = [lost_share(weight, whole(each), gram) for each in found]
    assert errors[0] < lost_share(weight, alone, gram)
    assert errors[1] <= errors[0]


def test_a_weight_of_low_rank_leaves_nothing_to_lose() -> None:
    weight = drawn(48, 4, 4) @ drawn(4, 64, 5)
    gram = gram_of(64)
    alone = dequantize(solve(weight, gram, COARSE), COARSE)
    found = whole(parted(weight, gram, 4, THIN, COARSE, rounds=8))
    assert lost_share(weight, found, gram) < lost_share(weight, alone, gram) / 4


def test_between_the_best_of_all_codes_and_codes_alone() -> None:
    """Rank 1 beside 6 codes of 2 bits: all 4,096 are tried, and what each leaves is cut exactly."""
    grid = Grid.parse("int2-g32")
    codes = torch.tensor(list(product(range(-2, 2), repeat=6)), dtype=torch.float64).view(-1, 2, 3)
    sums = torch.zeros(3, dtype=torch.float64)
    for seed in range(8):
        weight, gram = drawn(2, 3, seed), gram_of(3)
        root = torch.linalg.cholesky(gram.double())
        found = parted(weight, gram, 1, THIN, grid, rounds=4)
        scale, alone = found.rest.scales.double(), solve(weight, gram, grid).scales.double()
        best = torch.linalg.svdvals((weight - codes * scale) @ root)[:, 1].square().min()
        none = ((weight - codes * alone) @ root).square().sum((1, 2)).min()
        both = dequantize(found.up, THIN) @ dequantize(found.down, THIN)
        error = ((weight - both - dequantize(found.rest, grid)).double() @ root).square().sum()
        assert best <= error <= none
        sums += torch.stack([best, error, none])
    assert sums[1] - sums[0] < (sums[2] - sums[0]) / 10


def test_lost_share_is_tokens_squared_errors_in_float64() -> None:
    inputs, weight, new = drawn(30, 8, 6), drawn(5, 8, 7), drawn(5, 8, 8)
    above = (inputs.double() @ (weight - new).double().t()).square().sum()
    below = (inputs.double() @ weight.double().t()).square().sum()
    found = lost_share(weight, new, inputs.t() @ inputs / 30)
    assert found == pytest.approx(float(above / below), rel=1e-4)
