"""Scales and zero points that are trained: what is computed is what will be kept."""

from __future__ import annotations

import pytest
import torch

from attar.core.grid import Grid
from attar.layers import QuantizedLinear
from attar.ops.levels import levels_of
from attar.ops.packing import unpack
from attar.ops.rounding import decode, fit_scales, grouped, quantize

GRIDS = ("int4-g32", "int3-g64-zp", "int8-channel", "q4_1", "nf4", "fp8-e4m3", "mxfp4")


def linear(grid_name: str) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(0)
    weight, grid = torch.randn(6, 96, generator=generator), Grid.parse(grid_name)
    return QuantizedLinear(6, 96, grid).fill(quantize(weight, fit_scales(weight, grid), grid))


@pytest.mark.parametrize("grid", GRIDS)
def test_freed_and_settled_without_training_nothing_has_moved(grid: str) -> None:
    layer, before = linear(grid), {k: v.clone() for k, v in linear(grid).state_dict().items()}
    layer.free()
    assert torch.equal(layer.weight, linear(grid).weight)
    layer.settle()
    assert before.keys() == layer.state_dict().keys()
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in before.items())
    assert not list(layer.parameters())


@pytest.mark.parametrize("grid", GRIDS)
def test_what_was_computed_with_is_what_is_left(grid: str) -> None:
    layer, inputs = linear(grid), torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    codes = layer.codes.clone()
    with torch.no_grad():
        for parameter in layer.free():
            parameter += 0.5 * torch.randn_like(parameter)  # enough for powers of two
        trained = layer(inputs)
    layer.settle()
    assert torch.equal(layer(inputs), trained)
    assert torch.equal(layer.codes, codes)
    assert not torch.equal(layer.scales, linear(grid).scales)


@pytest.mark.parametrize("grid", GRIDS)
def test_gradients_are_those_of_the_plain_formula_in_float64(grid: str) -> None:
    layer = linear(grid)
    inputs = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    parameters = layer.free()
    layer(inputs).square().sum().backward()
    codes = unpack(layer.codes, layer.grid, 96)
    levels = grouped(levels_of(codes, layer.grid).double(), layer.group)
    scales = layer.scales.double()
    zeros = torch.zeros_like(scales) if layer.zeros is None else layer.zeros.double()
    minima = torch.zeros_like(scales) if layer.minima is None else layer.minima.double()
    for values in (scales, zeros, minima):
        values.requires_grad_(True)
    weight = (levels - zeros[..., None]) * scales[..., None] + minima[..., None]
    weight = weight.reshape(6, -1)[:, :96]
    (inputs.double() @ weight.t()).square().sum().backward()
    size = scales.detach()
    moved = zeros.grad if layer.minima is None else minima.grad * size  # type: ignore[operator]
    wanted = [scales.grad * size, moved * 16.0]  # type: ignore[operator]
    for parameter, gradient in zip(parameters, wanted, strict=False):
        torch.testing.assert_close(parameter.grad.double(), gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("grid", [*GRIDS, "int4-g32-min", "nf4-g32", "mxfp4"])
@pytest.mark.parametrize("rank", [0, 2])
def test_codes_that_were_trained_are_left_as_they_were_computed_with(grid: str, rank: int) -> None:
    layer, inputs = linear(grid), torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    before, held = layer.weight, torch.rand(6, 96) < 0.2
    levels = decode(layer.unpacked(), layer.grid)
    parameters = layer.free_codes(levels, rank, held)
    assert torch.equal(layer.weight, before)
    layer(inputs).square().sum().backward()
    assert parameters[0].grad is not None
    with torch.no_grad():
        parameters[0] += 1.0
        trained = layer(inputs)
    layer.settle()
    assert torch.equal(layer(inputs), trained)
    moved = layer.weight != before
    assert moved.any()
    assert not moved[held].any()
    assert not list(layer.parameters())


@pytest.mark.parametrize("grid", GRIDS)
def test_floats_that_are_kept_are_what_the_codes_stand_for(grid: str) -> None:
    layer, inputs = linear(grid), torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        opened, saved = layer(inputs), set(layer.state_dict())
        layer.keep_floats(torch.float32)
        assert layer.floats is not None
        assert torch.equal(layer(inputs), opened)
        assert set(layer.state_dict()) == saved
        layer.codes.zero_()  # so that they are seen to be used
        assert torch.equal(layer(inputs), opened)
        assert not torch.equal(layer(inputs.bfloat16()).float(), opened)  # of another dtype
        layer.fill(layer.unpacked())
    assert layer.floats is None
    layer.keep_floats(torch.float32)
    layer.free_scales()
    assert layer.floats is None
