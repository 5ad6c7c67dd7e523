"""Scales for the inputs of a linear that make its weights lose less on a grid.

Lin et al. 2024, "AWQ: Activation-aware Weight Quantization" (arXiv 2306.00978), section 3.2: a
channel whose inputs are large is multiplied by a power of their size, so that its weights are
rounded more finely than the others.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attar.core.grid import Grid
from attar.ops.gptq import error_of
from attar.ops.rounding import fit_scales, quantize

_POWERS = tuple(step / 20 for step in range(21))
_ROWS = 256


def search(
    weight: Tensor,
    gram: Tensor,
    grid: Grid,
    tied: Callable[[Tensor], Tensor] = lambda channels: channels,
) -> Tensor:
    """What to multiply each input channel of a weight [rows, width] by: [width], or all ones.

    Of the powers 0, 0.05, ..., 1 of the inputs' root mean square, the one that leaves the least
    |(W - Q) X|^2, which the gram [width, width] gives exactly; told from some of the rows.
    `tied` averages over channels that must be scaled alike.
    """
    few = weight.detach()[:: max(1, len(weight) // _ROWS)].float()
    gram = gram.float()
    size = tied(gram.diagonal()).clamp_min(0).sqrt()
    size = size.clamp_min(1e-4 * float(size.max()) or 1.0)
    best, least = torch.ones_like(size), float("inf")
    for power in _POWERS:
        scales = size**power
        scales = scales / (scales.max() * scales.min()).sqrt()
        error = _error(few * scales, gram / scales / scales[:, None], grid)
        if error < least:
            best, least = scales, error
    return best


def _error(weight: Tensor, gram: Tensor, grid: Grid) -> float:
    """The relative error of rounding to nearest."""
    codes = quantize(weight, fit_scales(weight, grid, gram.diagonal()), grid)
    return error_of(weight, codes, gram, grid)
