"""A weight as thin factors and what they leave, all on grids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attar.core.grid import Grid
from attar.ops.factor import whitened
from attar.ops.gptq import nearest, solve
from attar.ops.rounding import Codes, dequantize


@dataclass(frozen=True)
class Split:
    """up [rows, rank] times down [rank, width], plus rest [rows, width]."""

    up: Codes
    down: Codes
    rest: Codes


def split(
    weight: Tensor, gram: Tensor, rank: int, thin: Grid, coarse: Grid, rounds: int = 2
) -> Split:
    """Factors on the grid `thin` and codes on `coarse` that make (W - UD - Q) X small.

    In turns, as in CALDERA (Saha et al. 2024, arXiv 2405.18886, algorithm 1): the factors take
    what is exact for the gram of what the codes leave, nothing at first, and GPTQ rounds what
    the rounded factors leave.

    weight: [rows, width]; gram: [width, width], the mean of x xT over calibration tokens.
    """
    weight = weight.detach().float()
    rest, found = torch.zeros_like(weight), list[Split]()
    for _ in range(rounds):
        factors = whitened(weight - rest, gram, rank)
        up, down = nearest(factors.up, thin), nearest(factors.down, thin)
        product = dequantize(up, thin) @ dequantize(down, thin)
        codes = solve(weight - product, gram, coarse)
        rest = dequantize(codes, coarse)
        found.append(Split(up, down, codes))
    return found[-1]
