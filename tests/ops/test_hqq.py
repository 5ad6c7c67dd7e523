"""Half-quadratic quantization: its shrinkage, its step, and an objective that falls."""

from __future__ import annotations

import pytest
import torch

from attar.core.grid import Grid
from attar.ops.gptq import nearest
from attar.ops.hqq import Split, shrink, solve
from attar.ops.rounding import Codes, dequantize, grouped


def heavy(rows: int = 16, width: int = 128) -> torch.Tensor:
    """Weights a few of which are far from the others."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, width, generator=generator)
    return weight * (1 + 3 * (torch.rand(rows, width, generator=generator) > 0.95)) + 0.4


def lost(weight: torch.Tensor, codes: Codes, grid: Grid, norm: float) -> torch.Tensor:
    """The sum of |error|^norm over each group, in units of the scale."""
    group = grid.group_for(weight.shape[1])
    errors = grouped(weight.double() - dequantize(codes, grid).double(), group)
    return ((errors / codes.scales.double()[..., None]).abs() ** norm).sum(-1)


def test_shrinkage_of_norm_1_is_soft_thresholding():
    """There it is the proximal operator: the least of |e| + strength/2 (e - x)^2."""
    errors = torch.linspace(-2, 2, 41, dtype=torch.float64)
    tried = torch.linspace(-3, 3, 60001, dtype=torch.float64)
    cost = tried.abs() + 4 / 2 * (tried - errors[:, None]).square()
    torch.testing.assert_close(shrink(errors, 4.0, 1.0), tried[cost.argmin(1)], rtol=0, atol=2e-4)


@pytest.mark.parametrize("norm", [0.5, 0.7, 0.9])
def test_shrinkage_keeps_the_sign_and_large_errors_more_whole(norm: float):
    errors = torch.linspace(0.001, 5, 500, dtype=torch.float64)
    kept = shrink(errors, 10.0, norm)
    assert torch.equal(shrink(-errors, 10.0, norm), -kept)
    assert (kept <= errors).all()
    assert (kept[errors < 10 ** (-1 / (2 - norm))] == 0).all()
    share = kept / errors
    assert (share[1:] >= share[:-1] - 1e-12).all()
    assert shrink(torch.zeros(3), 10.0, norm).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["int4-g64-min", "q4_1", "int2-g64-min"])
def test_a_step_is_that_of_the_paper_in_float64(name: str):
    """The paper moves a zero point z, with w = (code - z) / s: z = mean(code - (W - We) s)."""
    grid, weight, inverse = Grid.parse(name), heavy().double(), 7.0
    values = grouped(weight, grid.group_for(128))
    zero = torch.full(values.shape[:2], 5.25, dtype=torch.float64)[..., None]
    codes = (values * inverse + zero).round().clamp(0, grid.high)
    errors = values - (codes - zero) / inverse
    large = shrink(errors * inverse, 10.0, 0.7) / inverse
    expected = (codes - (values - large) * inverse).mean(-1)
    scales = torch.full_like(zero[..., 0], 1 / inverse)
    split = Split(values, scales, torch.ones_like(values[:1]), grid, 0.7)
    (found,) = split.steps(-zero[..., 0] / inverse, 1)
    torch.testing.assert_close(-found * inverse, expected)


@pytest.mark.parametrize("name", ["int4-g64-min", "int3-g128-min", "int2-g32-min"])
@pytest.mark.parametrize("width", [128, 100])
def test_no_group_loses_more_than_at_the_start_and_most_lose_less(name: str, width: int):
    grid, weight = Grid.parse(name), heavy(width=width)
    before = lost(weight, nearest(weight, grid), grid, 0.7)
    after = lost(weight, solve(weight, grid), grid, 0.7)
    assert (after <= before * 1.0001).all()
    assert (after < before).double().mean() > 0.5


def test_the_objective_falls_with_more_steps():
    grid, weight = Grid.parse("int3-g64-min"), heavy()
    sums = [float(lost(weight, solve(weight, grid, 0.7, n), grid, 0.7).sum()) for n in (1, 5, 20)]
    assert sums[0] > sums[1] >= sums[2]


def test_a_weight_eight_times_as_large_gets_the_same_codes():
    grid, weight = Grid.parse("int4-g64-min"), heavy()
    assert torch.equal(solve(weight, grid).codes, solve(weight * 8, grid).codes)
