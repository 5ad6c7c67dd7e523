"""Learned step sizes: the paper's formulas, number by number in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attar.core.grid import Grid
from attar.ops.lsq import lsq
from attar.ops.rounding import Scales, dequantize, fit_scales, quantize


def drawn(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def by_hand(
    weight: Tensor, scales: Scales, grid: Grid, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Values and gradients by equations 1 to 3 and the scale of section 2.2."""
    group = grid.group_for(weight.shape[1])
    seen, to_weight = torch.zeros_like(weight), torch.zeros_like(weight)
    to_scale = torch.zeros_like(scales.scales)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            place = row, column // group
            step = scales.scales[place].item()
            zero = 0.0 if scales.zeros is None else scales.zeros[place].item()
            low, high = grid.low - zero, grid.high - zero
            ratio = weight[row, column].item() / step
            number = min(max(round(ratio), low), high)
            seen[row, column] = number * step
            within = low < ratio < high
            to_weight[row, column] = slope[row, column] * within
            if within:
                found = -ratio + number
            else:
                found = low if ratio <= low else high
            to_scale[place] += slope[row, column] * found / (group * grid.high) ** 0.5
    return seen, to_weight, to_scale


@pytest.mark.parametrize("name", ["int2-g32", "int3-g64", "int4-channel", "int3-g32-zp"])
@pytest.mark.parametrize("width", [64, 40])
def test_the_papers_formulas(name: str, width: int) -> None:
    grid, weight, slope = Grid.parse(name), drawn(3, width).double(), drawn(3, width, 1).double()
    fitted = fit_scales(weight, grid)
    scales = Scales(fitted.scales.double() * 0.7, fitted.zeros)  # so that some lie outside
    given, steps = weight.clone().requires_grad_(), scales.scales.clone().requires_grad_()
    found = lsq(given, Scales(steps, scales.zeros), grid)
    found.backward(slope)
    seen, to_weight, to_scale = by_hand(weight, scales, grid, slope)
    assert 0 < (to_weight == 0).sum() < to_weight.numel()
    torch.testing.assert_close(found.detach(), seen)
    torch.testing.assert_close(given.grad, to_weight)
    torch.testing.assert_close(steps.grad, to_scale)


def test_what_is_seen_is_what_the_codes_stand_for() -> None:
    grid, weight = Grid.parse("int3-g32"), drawn(5, 96)
    fitted = fit_scales(weight, grid)
    seen = lsq(weight, fitted, grid)
    assert torch.equal(seen, dequantize(quantize(weight, fitted, grid), grid))
    assert torch.equal(quantize(seen, fitted, grid).codes, quantize(weight, fitted, grid).codes)
