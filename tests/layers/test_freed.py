"""Scales and zero points that are trained: what is computed is what will be kept."""

from __future__ import annotations

import pytest
import torch

from attar.core.grid import Grid
from attar.layers import QuantizedLinear
from attar.ops.rounding import fit_scales, grouped, quantize, unpack

GRIDS = ("int4-g32", "int3-g64-zp", "int8-channel")


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
            parameter += 0.05 * torch.randn_like(parameter)
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
    codes = grouped(unpack(layer.codes, layer.grid, 96).double(), layer.group)
    scales = layer.scales.double()
    zeros = torch.zeros_like(scales) if layer.zeros is None else layer.zeros.double()
    scales.requires_grad_(True)
    zeros.requires_grad_(True)
    weight = ((codes - zeros[..., None]) * scales[..., None]).reshape(6, -1)[:, :96]
    (inputs.double() @ weight.t()).square().sum().backward()
    wanted = [scales.grad * scales.detach(), zeros.grad * 16.0]  # type: ignore[operator]
    for parameter, gradient in zip(parameters, wanted, strict=False):
        torch.testing.assert_close(parameter.grad.double(), gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("grid", GRIDS)
def test_codes_that_were_trained_are_left_as_they_were_computed_with(grid: str) -> None:
    layer, inputs = linear(grid), torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    before = layer.unpacked().codes
    wanted = before + 0.4 * torch.rand(6, 96, generator=torch.Generator().manual_seed(2)) - 0.2
    (nudge,) = layer.free_codes(wanted)
    assert torch.equal(layer.unpacked().codes.short(), before)
    layer(inputs).square().sum().backward()
    assert nudge.grad is not None
    with torch.no_grad():
        nudge += 0.5
        trained = layer(inputs)
    layer.settle()
    assert torch.equal(layer(inputs), trained)
    after = (wanted + 0.5).round().clamp(layer.grid.low, layer.grid.high)
    assert torch.equal(layer.unpacked().codes.float(), after)
    assert not list(layer.parameters())
