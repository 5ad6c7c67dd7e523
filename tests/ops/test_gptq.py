"""GPTQ against brute force and float64, and the grids' bytes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from attar.core.grid import Grid
from attar.ops import gptq
from attar.ops.levels import snap
from attar.ops.packing import pack, packed_width, unpack
from attar.ops.rounding import (
    Codes,
    Scales,
    decode,
    dequantize,
    fit_scales,
    quantize,
    round_scale,
    spread,
    weights_of,
)

NEW = ("q4_1", "int2-g64-min", "nf4-g32", "fp8-e4m3", "mxfp4")
GRIDS = ("int2-g32", "int3-g64", "int4-g64", "int4-g32-zp", "int8-channel", "int8-g32-zp")


def correlated(width: int, seed: int = 0) -> torch.Tensor:
    """The gram matrix of inputs that go together."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    inputs = torch.randn(4 * width, width, generator=generator) @ mixing
    return inputs.t() @ inputs / len(inputs)


def objective(weight: torch.Tensor, codes: Codes, gram: torch.Tensor, grid: Grid) -> float:
    """tr(E G ET) in float64."""
    rest = weight.double() - dequantize(codes, grid).double()
    return float(((rest @ gram.double()) * rest).sum())


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("width", [32, 64, 100, 33])
def test_codes_survive_packing(name: str, width: int):
    grid = Grid.parse(name)
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(grid.low, grid.high + 1, (5, width), generator=generator)
    packed = pack(codes.to(torch.int16), grid)
    assert packed.shape == (5, packed_width(width, grid.bits))
    assert torch.equal(unpack(packed, grid, width).long(), codes)


def test_scales_are_the_same_number_in_every_float():
    scales = round_scale(torch.cat([torch.randn(1000), torch.tensor([0.0, 1e-9, 1e9, -1e-7])]))
    assert torch.equal(scales.to(torch.float16).float(), scales)
    assert torch.equal(scales.to(torch.bfloat16).float(), scales)
    assert scales.isfinite().all()
    assert (scales != 0).all()


@pytest.mark.parametrize("name", GRIDS)
def test_fitted_scales_beat_the_plain_range(name: str):
    grid = Grid.parse(name)
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(2))
    group = grid.group_for(128)
    parts = weight.reshape(16, -1, group)
    if grid.zero_point:
        low, high = parts.amin(-1).clamp_max(0), parts.amax(-1).clamp_min(0)
        scale = round_scale((high - low) / grid.high)
        plain = Scales(scale, (-low / scale).round())
    else:
        plain = Scales(round_scale(parts.abs().amax(-1) / grid.high), None)
    fitted = quantize(weight, fit_scales(weight, grid), grid)
    naive = quantize(weight, plain, grid)
    eye = torch.eye(128)
    assert objective(weight, fitted, eye, grid) <= objective(weight, naive, eye, grid) * 1.0001


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-zp", "nf4-g32"])
def test_the_columns_are_those_of_eliminations_in_float64(name: str):
    """The paper's equations 2 and 3, each column eliminated from the inverse after its error."""
    grid, gram = Grid.parse(name), correlated(96)
    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(4))
    damped = gram.double() + 0.01 * gram.diagonal().double().mean() * torch.eye(96)
    inverse = torch.linalg.inv(damped)
    fitted = fit_scales(weight, grid, gram.diagonal())
    rest, expected = weight.double(), torch.empty(8, 96)
    scales = spread(fitted.scales, grid.group_for(96), 96)
    zeros = None if fitted.zeros is None else spread(fitted.zeros, grid.group_for(96), 96)
    for column in torch.argsort(gram.diagonal(), descending=True, stable=True).tolist():
        value, scale = rest[:, column].float(), scales[:, column]
        zero = None if zeros is None else zeros[:, column]
        expected[:, column] = level = snap(value / scale, grid, zero) * scale
        error = (rest[:, column] - level) / inverse[column, column]
        rest = rest - error[:, None] * inverse[column]
        inverse = inverse - inverse[:, [column]] @ inverse[[column]] / inverse[column, column]
    found = dequantize(gptq.solve(weight, gram, grid, sweeps=0), grid)
    assert ((found - expected).abs() < 1e-4).float().mean() > 0.995


@pytest.mark.parametrize("seed", range(5))
def test_between_the_exact_optimum_and_round_to_nearest(seed: int):
    """All 4^6 codes of a row of six weights, at two bits."""
    grid = Grid(bits=2)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, 6, generator=generator)
    gram = correlated(6, seed)
    solved = gptq.solve(weight, gram, grid, sweeps=2)
    best = float(optimum(weight, solved, gram, grid))
    found = objective(weight, solved, gram, grid)
    nearest = objective(weight, gptq.nearest(weight, grid, gram.diagonal()), gram, grid)
    assert best - 1e-9 <= found <= nearest + 1e-9


def optimum(weight: torch.Tensor, codes: Codes, gram: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The least error of each row among all codes, on the scales that were found: [rows]."""
    every = itertools.product(range(grid.low, grid.high + 1), repeat=weight.shape[1])
    rest = weight.double()[:, None] - torch.tensor(list(every)) * codes.scales.double()[:, :, None]
    return ((rest @ gram.double()) * rest).sum(-1).amin(1)


@pytest.mark.parametrize(
    ("sweeps", "lost", "exact", "better"), [(0, 1.3, 0.58, 0.35), (2, 1.12, 0.78, 0.9)]
)
def test_over_many_problems_it_is_near_the_optimum(
    sweeps: int, lost: float, exact: float, better: float
):
    """Nearest, or no errors moved, loses 1.6 times the optimum, and finds it in 4 of 10 rows.

    Nor are these bounds met after two sweeps that left out moving codes or refitting scales.
    """
    grid = Grid(bits=2)
    ratios: list[torch.Tensor] = []
    wins: list[torch.Tensor] = []
    for seed in range(60):
        weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
        gram = correlated(6, seed)
        solved = gptq.solve(weight, gram, grid, sweeps)
        found, nearest = (
            ((rest @ gram.double()) * rest).sum(1)
            for rest in (
                weight.double() - dequantize(codes, grid).double()
                for codes in (solved, gptq.nearest(weight, grid, gram.diagonal()))
            )
        )
        ratios.append(found / optimum(weight, solved, gram, grid))
        wins.append(found < 0.999 * nearest)
    ratio = torch.cat(ratios)
    assert ratio.min() > 1 - 1e-6
    assert ratio.log().mean().exp() < lost
    assert (ratio < 1.0001).double().mean() > exact
    assert torch.cat(wins).double().mean() > better


@pytest.mark.parametrize("name", ["int4-g64", "int3-g32", "int4-g32-zp", "int8-channel", *NEW])
def test_beats_nearest_and_sweeps_never_hurt(name: str):
    grid = Grid.parse(name)
    weight = torch.randn(24, 192, generator=torch.Generator().manual_seed(3))
    gram = correlated(192)
    errors = [
        objective(weight, gptq.solve(weight, gram, grid, sweeps), gram, grid) for sweeps in range(4)
    ]
    assert errors[0] < objective(weight, gptq.nearest(weight, grid), gram, grid)
    for before, after in itertools.pairwise(errors):
        assert after <= before * 1.0001


def test_dead_inputs_and_a_gram_that_is_not_definite():
    grid = Grid.parse("int4-g32")
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(4))
    few = torch.randn(3, 64, generator=torch.Generator().manual_seed(5))
    few[:, 7] = 0
    codes = gptq.solve(weight, few.t() @ few, grid)
    assert dequantize(codes, grid).isfinite().all()
    nothing = gptq.solve(weight, torch.zeros(64, 64), grid)
    assert torch.equal(nothing.codes, gptq.nearest(weight, grid).codes)


def test_a_width_that_no_group_divides():
    grid = Grid.parse("int4-g64")
    weight = torch.randn(4, 100, generator=torch.Generator().manual_seed(6))
    codes = gptq.solve(weight, correlated(100), grid)
    assert codes.scales.shape == (4, 2)
    assert dequantize(codes, grid).shape == weight.shape


@pytest.mark.parametrize("name", ["int2-g32", "int2-g32-min", "mxfp4", "nf4-g32"])
def test_no_single_code_can_be_moved_for_the_better(name: str):
    """After a sweep over one column of inputs that do not go together, by brute force."""
    grid = Grid.parse(name)
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(7))
    gram = torch.diag(torch.rand(32, generator=torch.Generator().manual_seed(8)) + 0.1)
    found = gptq.solve(weight, gram, grid, sweeps=3)
    rest = (weight - dequantize(found, grid)).abs()
    for code in range(grid.low, grid.high + 1):
        other = dataclasses.replace(found, codes=torch.full_like(found.codes, code))
        assert (rest <= (weight - dequantize(other, grid)).abs() + 1e-6).all()


@pytest.mark.parametrize("name", ["int4-g32-zp", *(name for name in NEW if "1" not in name)])
def test_zeros_that_must_stay_do(name: str):
    grid = Grid.parse(name)
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(9))
    keep = torch.rand(6, 64, generator=torch.Generator().manual_seed(10)) > 0.5
    found = dequantize(gptq.solve(weight * keep, correlated(64), grid, 2, keep), grid)
    assert (found[~keep] == 0).all() == (not grid.minimum)
    assert (found[keep] != 0).any()


@pytest.mark.parametrize("name", ["int4-g32", "int3-g64", "int4-g32-zp", "int4-g32-min", "nf4"])
def test_wanted_levels_are_the_minimum_along_each_or_round_to_it(name: str):
    grid = Grid.parse(name)
    weight, gram = torch.randn(4, 64, generator=torch.Generator().manual_seed(7)), correlated(64)
    codes = gptq.solve(weight, gram, grid)
    wanted, levels = gptq.wanted_levels(weight, codes, gram, grid), decode(codes, grid)
    zeros = None if codes.zeros is None else spread(codes.zeros, grid.group_for(64), 64)
    assert torch.equal(snap(wanted.clone(), grid, zeros), levels)
    free = 0
    for row, column in itertools.product(range(4), range(0, 64, 7)):
        exact = levels.double()
        exact[row, column] = wanted[row, column].double()
        exact.requires_grad_(True)
        fitted = Scales(codes.scales.double(), None, codes.minima)
        rest = weight.double() - weights_of(exact, fitted, grid, torch.float64)
        ((rest @ gram.double()) * rest).sum().backward()
        size = float(gram[column, column]) * float(fitted.scales[row, column // 64]) ** 2
        assert exact.grad is not None
        slope = float(exact.grad[row, column]) / size
        moved = float(wanted[row, column] - levels[row, column])
        free += abs(slope) < 1e-2
        assert abs(slope) < 1e-2 or slope * moved <= 1e-6  # on the way to the minimum
    assert free > 20


def test_the_level_of_a_dead_input_wants_nothing_else():
    grid, gram = Grid.parse("int4-g32"), correlated(64)
    gram[5], gram[:, 5] = 0, 0
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(8))
    codes = gptq.solve(weight, gram, grid)
    wanted = gptq.wanted_levels(weight, codes, gram, grid)
    assert torch.equal(wanted[:, 5], decode(codes, grid)[:, 5])


def test_dead_inputs_are_no_louder_than_the_others():
    """Where those that are active are faint, a dead one must not decide about the damping."""
    grid, faint = Grid.parse("int3-g32"), correlated(64) * 1e-6
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(9))
    calm = gptq.solve(weight, faint, grid, sweeps=0)
    dead = torch.zeros(66, 66)
    dead[:64, :64] = faint
    wider = torch.cat([weight, torch.zeros(8, 2)], 1)
    found = gptq.solve(wider, dead, Grid(bits=3, group=32), sweeps=0)
    ours, theirs = (
        objective(weight, dataclasses.replace(one, codes=one.codes[:, :64]), faint, grid)
        for one in (dataclasses.replace(found, scales=found.scales[:, :2]), calm)
    )
    assert ours <= theirs * 1.2
