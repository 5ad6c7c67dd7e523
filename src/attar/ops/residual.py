"""A weight as thin factors and what they leave, all on grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from attar.core.grid import Grid
from attar.ops.factor import factored, root_of
from attar.ops.gptq import nearest, solve
from attar.ops.gram import lost_share
from attar.ops.rounding import Codes, dequantize


@dataclass(frozen=True)
class Parts:
    """up [rows, rank] times down [rank, width], plus rest [rows, width]."""

    up: Codes
    down: Codes
    rest: Codes


def parted(
    weight: Tensor, gram: Tensor, rank: int, thin: Grid, coarse: Grid, rounds: int = 2
) -> Parts:
    """Factors on the grid `thin` and codes on `coarse` that make (W - UD - Q) X small.

    In turns, as in CALDERA (Saha et al. 2024, arXiv 2405.18886, algorithm 1): the factors take
    what is exact for the gram of what the codes leave, nothing at first, and GPTQ rounds what
    the rounded factors leave. The best turn is kept.

    weight: [rows, width]; gram: [width, width], the mean of x xT over calibration tokens.
    """
    weight = weight.detach().float()
    rest = torch.zeros_like(weight)
    best, least, root = None, float("inf"), root_of(gram)
    for _ in range(rounds):
        factors = factored(weight - rest, rank, root)
        up, down = nearest(factors.up, thin), nearest(factors.down, thin)
        product = dequantize(up, thin) @ dequantize(down, thin)
        codes = solve(weight - product, gram, coarse)
        rest = dequantize(codes, coarse)
        lost = lost_share(weight, product + rest, gram)
        if best is None or lost < least:
            best, least = Parts(up, down, codes), lost
    return cast("Parts", best)
