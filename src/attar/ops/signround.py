"""Rounding that is learned: levels that a nudge moves, and descent by the gradient's sign.

Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of
LLMs" (SignRound, arXiv 2309.05516).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from attar.core.grid import Grid
from attar.ops.levels import snap
from attar.ops.rounding import spread, through


def nudged(wanted: Tensor, nudge: Tensor, grid: Grid, zeros: Tensor | None = None) -> Tensor:
    """The nearest levels of `wanted` plus a nudge (the paper's V), both [rows, width].

    What is wanted counts in units of the scale, minima and zero points taken off; in the paper it
    is the weight over its scale. zeros: [rows, groups], of a grid that has them. The gradient
    passes straight through to both, also beyond the grid's ends, where the authors' own code has
    none: what was nudged too far would never come back.
    """
    exact, width = wanted + nudge, wanted.shape[1]
    if zeros is not None:
        zeros = spread(zeros, grid.group_for(width), width)
    return through(exact, snap(exact.detach().clone(), grid, zeros))


class SignDescent(Optimizer):
    """Every parameter moves by its rate against its gradient's sign (signSGD, arXiv 1802.04434).

    A rate is how far a step goes, whatever the loss counts in; a gradient of zero moves nothing.
    """

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move once."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])
