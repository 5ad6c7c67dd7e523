"""Rounding that can be trained through: gradients for the weights and for the scales of a grid.

Esser et al. 2020, "Learned Step Size Quantization" (arXiv 1902.08153), with a step size for
every group of a row in place of one for a layer.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from attar.core.grid import Grid
from attar.ops.rounding import Scales, dequantize, grouped, quantize


def lsq(weight: Tensor, scales: Scales, grid: Grid) -> Tensor:
    """The weights that the nearest codes stand for, [rows, width], in the dtype of `weight`.

    With v = weight / scale, its minimum taken off before, and q the level that stands for it:
    the gradient passes straight through to the weight where v lies within the grid, and that of
    a scale is (section 2.1, equation 3) the sum over its group of q - v there and of q, the
    grid's end, elsewhere. It is multiplied by 1 / sqrt(group * the grid's largest level)
    (section 2.2), so that scales move by about the same share of themselves as weights. Zero
    points and minima have none.
    """
    found = _Lsq.apply(weight, scales.scales, scales.zeros, scales.minima, grid)
    return cast("Tensor", found)


class _Lsq(torch.autograd.Function):
    """Keeps the weight, its scales and what they came to, and nothing else of that size."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        minima: Tensor | None,
        grid: Grid,
    ) -> Tensor:
        codes = quantize(weight, Scales(scales, zeros, minima), grid)
        rounded = dequantize(codes, grid, weight.dtype)
        ctx.grid = grid
        ctx.save_for_backward(weight, scales, zeros, minima, rounded)
        return rounded

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, slope: Tensor
    ) -> tuple[Tensor | None, ...]:
        weight, scales, zeros, minima, rounded = ctx.saved_tensors
        grid, width = ctx.grid, weight.shape[1]
        group = grid.group_for(width)
        scale, minimum = scales[..., None], 0.0 if minima is None else minima[..., None]
        exact = (grouped(weight, group) - minimum) / scale
        zero = 0.0 if zeros is None else zeros[..., None]
        low, high = grid.ends
        within = (exact > low - zero) & (exact < high - zero)
        slopes = grouped(slope, group)
        found = None
        if ctx.needs_input_grad[1]:
            each = (grouped(rounded, group) - minimum) / scale - exact * within
            found = (slopes * each).sum(-1) / (group * high) ** 0.5
        return (slopes * within).reshape(len(weight), -1)[:, :width], found, None, None, None
