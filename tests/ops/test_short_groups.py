"""A last group that is shorter than the others has a range of its own."""

from __future__ import annotations

import pytest
import torch

from attar.core.grid import Grid
from attar.ops.rounding import dequantize, fit_scales, quantize


@pytest.mark.parametrize("name", ["int4-g64-min", "int4-g64-zp", "int4-g64", "nf4"])
def test_it_is_rounded_as_it_would_be_alone(name: str) -> None:
    grid = Grid.parse(name)
    weight = 5 + torch.rand(6, 100, generator=torch.Generator().manual_seed(0))
    whole = dequantize(quantize(weight, fit_scales(weight, grid), grid), grid)
    short = weight[:, 64:]
    alone = dequantize(quantize(short, fit_scales(short, grid), grid), grid)
    assert (whole[:, 64:] - short).square().sum() <= (alone - short).square().sum() * 1.001
