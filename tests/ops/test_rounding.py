"""Every grid: its levels against the formats' own, nearest by brute force, scales, and bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attar.core.grid import Grid
from attar.ops import gptq, rounding
from attar.ops.levels import codes_of, levels_of, snap
from attar.ops.packing import pack, packed_width, unpack
from attar.ops.rounding import (
    LARGEST,
    SMALLEST,
    Codes,
    Scales,
    dequantize,
    fit_scales,
    quantize,
    round_minimum,
    round_scale,
)

TABLES = ("nf4", "fp8-e4m3", "mxfp4")
GRIDS = (
    *("int2-g32", "int3-g64", "int4-channel", "int8-channel", "int4-g32-zp", "int8-g64-zp"),
    *("q4_1", "int2-g64-min", "int8-channel-min"),
    *("nf4", "nf4-g32", "nf4-channel", "fp8-e4m3", "fp8-e4m3-g128", "mxfp4"),
)
# Dettmers et al. 2023 (arXiv 2305.14314), appendix E
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def drawn(rows: int, width: int, seed: int = 0) -> Tensor:
    """Weights that lie a little to one side."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) + 0.3


def ladder(grid: Grid) -> Tensor:
    """Every level that there is, without an offset, in float64."""
    if grid.levels is None:
        return torch.arange(grid.low, grid.high + 1).double()
    levels = torch.tensor(grid.levels, dtype=torch.float64)
    return levels[levels.isfinite()]


def every_code(grid: Grid) -> Tensor:
    """All codes that stand for a number: [1, codes]."""
    codes = torch.arange(grid.low, grid.high + 1)[None]
    return codes if grid.levels is None else codes[:, torch.tensor(grid.levels).isfinite()]


def missed(weight: Tensor, codes: Codes, grid: Grid) -> Tensor:
    """The squared error of each row, in float64."""
    return (weight.double() - dequantize(codes, grid).double()).square().sum(1)


def test_normal_floats_are_those_of_the_paper():
    levels = Grid.parse("nf4").levels
    assert levels == pytest.approx(NF4, abs=1e-6)


def test_every_pattern_of_fp8_is_what_torch_reads():
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ours = torch.tensor(Grid.parse("fp8-e4m3").levels)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def test_microscaling_levels():
    halves = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    assert Grid.parse("mxfp4").levels == (*halves, *(-value for value in halves))


def test_rounding_to_fp8_is_torchs_down_to_the_code_halfway_and_below_normal():
    grid, halfway = Grid.parse("fp8-e4m3"), torch.arange(-4096, 4097)
    values = torch.cat([drawn(1, 5000)[0] * 100, halfway / 2**11, halfway / 2, halfway / 64])
    values = values.clamp(-448, 448)  # torch makes NaN of what is larger
    theirs = values.to(torch.float8_e4m3fn)
    ours = snap(values.clone(), grid)
    assert torch.equal(ours, theirs.float())
    some = ours != 0  # torch keeps the sign of zero
    assert torch.equal(codes_of(ours, grid)[some], theirs.view(torch.uint8).short()[some])
    assert snap(torch.tensor([1e6, -1e6]), grid).tolist() == [448, -448]


@pytest.mark.parametrize("name", [*TABLES, "int4-g32", "int8-channel"])
def test_snaps_to_the_nearest_level(name: str):
    grid = Grid.parse(name)
    peak = float(ladder(grid).max())
    values = torch.cat([drawn(1, 4000)[0] * peak / 2, torch.linspace(-1.1, 1.1, 999) * peak])
    distance = (values.double()[:, None] - ladder(grid)).abs().amin(1)
    found = (values.double() - snap(values.clone(), grid).double()).abs()
    torch.testing.assert_close(found, distance, rtol=0, atol=1e-6 * peak)


@pytest.mark.parametrize("name", TABLES)
def test_snaps_whatever_way_a_matrix_lies(name: str):
    values = drawn(6, 40)
    assert torch.equal(
        snap(values.t(), Grid.parse(name)), snap(values.clone(), Grid.parse(name)).t()
    )


@pytest.mark.parametrize("name", GRIDS)
def test_every_code_survives(name: str):
    """Packed, unpacked, turned into weights and rounded again, a code is what it was."""
    grid = Grid.parse(name)
    codes = every_code(grid).short()
    width = codes.shape[1]
    groups = (1, -(-width // grid.group_for(width)))
    fitted = Scales(
        torch.full(groups, 0.0625),
        torch.full(groups, 3.0) if grid.zero_point else None,
        torch.full(groups, -1.375) if grid.minimum else None,
    )
    packed = pack(codes, grid)
    assert packed.shape == (1, packed_width(width, grid.bits))
    assert torch.equal(unpack(packed, grid, width), codes)
    result = Codes(codes, fitted.scales, fitted.zeros, fitted.minima)
    weight = dequantize(result, grid)
    levels = codes if grid.levels is None else torch.tensor(grid.levels)[codes.int()]
    offset = 3 * grid.zero_point
    assert torch.equal(weight, 0.0625 * (levels.float() - offset) - 1.375 * grid.minimum)
    again = quantize(weight, fitted, grid)
    assert torch.equal(dequantize(again, grid), weight)
    some = weight != 0  # the two zeros of a float are one
    assert torch.equal(again.codes[some], codes[some])


@pytest.mark.parametrize("name", GRIDS)
def test_rounding_is_nearest_by_brute_force_and_once_is_enough(name: str):
    grid, weight = Grid.parse(name), drawn(3, 96, seed=1)
    fitted = fit_scales(weight, grid)
    codes = quantize(weight, fitted, grid)
    group = grid.group_for(96)
    points = ladder(grid).expand(3, 96 // group, -1)
    if fitted.zeros is not None:
        points = points - fitted.zeros[..., None]
    points = points * fitted.scales[..., None].double()
    if fitted.minima is not None:
        points = points + fitted.minima[..., None]
    parts = weight.double().view(3, -1, group)
    nearest = (parts[..., None] - points[:, :, None]).abs().amin(-1).view(3, 96)
    found = (weight.double() - dequantize(codes, grid).double()).abs()
    torch.testing.assert_close(found, nearest, rtol=0, atol=1e-5)
    again = quantize(dequantize(codes, grid), fitted, grid)
    assert torch.equal(dequantize(again, grid), dequantize(codes, grid))


@pytest.mark.parametrize("name", ["int4-g32", "q4_1", "int2-g64-zp", "int2-g64-min", *TABLES])
def test_fitted_scales_beat_the_plain_range(name: str):
    grid, weight = Grid.parse(name), drawn(32, 128, seed=2)
    parts = weight.view(32, -1, grid.group_for(128))
    low, high = parts.amin(-1), parts.amax(-1)
    if grid.offset == "none":
        plain = Scales(round_scale(parts.abs().amax(-1) / grid.ends[1], grid.powers))
    elif grid.zero_point:
        low, high = low.clamp_max(0), high.clamp_min(0)
        scale = round_scale((high - low) / grid.high)
        plain = Scales(scale, (-low / scale).round())
    else:
        plain = Scales(round_scale((high - low) / grid.high), None, round_minimum(low))
    fitted = missed(weight, quantize(weight, fit_scales(weight, grid), grid), grid)
    assert fitted.sum() < missed(weight, quantize(weight, plain, grid), grid).sum()


def test_a_minimum_beats_a_zero_point_where_weights_lie_to_one_side():
    weight = drawn(16, 128).abs() + 1
    lost = [
        missed(weight, gptq.nearest(weight, Grid.parse(name)), Grid.parse(name)).sum()
        for name in ("int4-g32-min", "int4-g32-zp", "int4-g32")
    ]
    assert lost[0] < 0.5 * lost[1] < 0.5 * lost[2]


def test_weights_on_a_grid_with_a_minimum_are_found_again():
    """As in a file that was rounded so before: all that is lost is the rounding of scales."""
    grid = Grid.parse("q4_1")
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, (8, 64), generator=generator)
    codes[:, ::32], codes[:, 1::32] = 0, 15  # such a file's groups reach to both ends
    scales, minima = torch.rand(2, 8, 2, generator=generator) + 0.5
    exact = Codes(codes.short(), scales, None, -8 * minima)
    weight = dequantize(exact, grid)
    found = gptq.nearest(weight, grid)
    assert torch.equal(found.codes.long(), codes)
    assert missed(weight, found, grid).sum() < 1e-5 * weight.square().sum()


@pytest.mark.parametrize("name", GRIDS)
def test_scales_and_minima_are_the_same_number_in_every_float(name: str):
    fitted = fit_scales(drawn(16, 100) * torch.logspace(-9, 5, 16)[:, None], Grid.parse(name))
    for values in (fitted.scales, fitted.minima):
        if values is not None:
            assert torch.equal(values.to(torch.float16).float(), values)
            assert torch.equal(values.to(torch.bfloat16).float(), values)
    assert fitted.scales.abs().min() >= SMALLEST


def test_powers_of_two_are_the_nearest():
    sizes = torch.logspace(-6, 6, 2000)
    powers = 2.0 ** torch.arange(-14, 16)
    found = round_scale(torch.where(torch.arange(2000) % 2 == 0, sizes, -sizes), powers=True)
    nearest = powers[(sizes[:, None] - powers).abs().argmin(1)]
    assert torch.equal(found, nearest)
    assert set(round_scale(torch.tensor([0.0, 1e9]), powers=True).tolist()) == {SMALLEST, 2.0**15}


def test_minima_may_be_zero():
    found = round_minimum(torch.tensor([0.0, 1e-9, -(2.0**-14), 1.0 + 2**-7, -1e9]))
    assert found.tolist() == [0.0, 0.0, -(2.0**-14), 1.0 + 2**-7, -LARGEST]


@pytest.mark.parametrize("name", [name for name in GRIDS if "-zp" not in name])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_fewer_bits_are_the_exact_ones_rounded_once(name: str, dtype: torch.dtype):
    grid = Grid.parse(name)
    codes = gptq.nearest(drawn(4, 64), grid)
    assert torch.equal(dequantize(codes, grid, dtype), dequantize(codes, grid).to(dtype))


@pytest.mark.parametrize("name", GRIDS)
def test_levels_and_codes_are_each_others_inverse(name: str):
    grid = Grid.parse(name)
    levels = levels_of(every_code(grid).short(), grid).float()
    assert torch.equal(levels_of(codes_of(levels, grid), grid).float(), levels)


@pytest.mark.parametrize("name", ["int4-g64", "int4-g64-zp", "q4_1", "nf4-g64", "mxfp4"])
def test_rows_are_rounded_a_few_at_a_time_and_as_if_together(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    """A table of embeddings has a hundred thousand of them."""
    grid = Grid.parse(name)
    weight = torch.randn(37, 128, generator=torch.Generator().manual_seed(0))
    fitted = fit_scales(weight, grid)
    whole = quantize(weight, fitted, grid)
    monkeypatch.setattr(rounding, "_ELEMENTS", 5 * 128)
    parts = quantize(weight, fitted, grid)
    assert torch.equal(parts.codes, whole.codes)
    assert torch.equal(parts.scales, whole.scales)


@pytest.mark.parametrize("name", ["int4-g32", "int3-g32-zp", "nf4"])
def test_scales_leave_least_of_the_power_that_is_asked_for(name: str):
    """But for the refit, which is one of squares and of the best range alone."""
    grid, weight = Grid.parse(name), drawn(40, 96, seed=2) ** 3
    two, three = (
        (dequantize(quantize(weight, found, grid), grid) - weight).abs().double()
        for found in (fit_scales(weight, grid, power=power) for power in (2, 3))
    )
    assert float(two.square().sum()) < 1.002 * float(three.square().sum())
    assert float(three.pow(3).sum()) < 1.002 * float(two.pow(3).sum())
    assert float(three.pow(4).sum()) < float(two.pow(4).sum())
