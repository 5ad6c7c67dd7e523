"""Minima that leave many small errors and let a few be large: a norm of the errors below 1.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models": errors are
split into the large ones, which shrinkage keeps, and the rest, whose squares the minima then
make least. Scales stay as they are, and no data is needed.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from attar.core.grid import Grid
from attar.ops.levels import snap
from attar.ops.rounding import Codes, fit_scales, grouped, quantize, round_minimum

_ROWS = 256  # of a weight, handled at once


def shrink(errors: Tensor, strength: float, norm: float) -> Tensor:
    """What stays of errors of any shape: sign(x) max(0, |x| - |x|^(norm - 1) / strength).

    The paper's operator for the first of its two subproblems; with a norm of 1 it is exact.
    """
    size = errors.abs()
    return errors.sign() * (size - size.clamp_min(1e-12) ** (norm - 1) / strength).clamp_min(0)


@dataclass(frozen=True)
class Split:
    """Half-quadratic splitting of the errors of weights [rows, groups, group].

    scales: [rows, groups]; there: [1, groups, group], 1 where a weight is and 0 where one only
    fills the last group. Errors are counted in units of the scale, so that `strength` (beta in
    the paper, `growth` being its kappa) means the same for all weights.
    """

    weight: Tensor
    scales: Tensor
    there: Tensor
    grid: Grid
    norm: float
    strength: float = 10.0
    growth: float = 1.01

    def levels(self, minima: Tensor) -> Tensor:
        """The nearest levels, given minima [rows, groups]."""
        rest = self.weight - minima[..., None]
        return snap(rest / self.scales[..., None], self.grid)

    def errors(self, levels: Tensor, minima: Tensor) -> Tensor:
        """What levels and minima miss, in units of the scale."""
        return (self.weight - minima[..., None]) / self.scales[..., None] - levels

    def lost(self, minima: Tensor) -> Tensor:
        """The sum of |error|^norm of each group: [rows, groups]."""
        errors = self.errors(self.levels(minima), minima)
        return (errors.abs() ** self.norm * self.there).sum(-1)

    def steps(self, minima: Tensor, count: int) -> Iterator[Tensor]:
        """Minima after each step: shrink the errors, then take the mean of what is left."""
        strength, scales = self.strength, self.scales[..., None]
        for _ in range(count):
            levels = self.levels(minima)
            large = shrink(self.errors(levels, minima), strength, self.norm)
            rest = (self.weight - (levels + large) * scales) * self.there
            minima = rest.sum(-1) / self.there.sum(-1)
            strength *= self.growth
            yield minima


def solve(weight: Tensor, grid: Grid, norm: float = 0.7, iterations: int = 20) -> Codes:
    """Codes of a weight [rows, width] on a grid with minima; scales are those of least squares.

    Of the minima on the way, rounded, each group keeps that which loses least.
    """
    fitted = fit_scales(weight, grid)
    group = grid.group_for(weight.shape[1])
    there = grouped(torch.ones(1, weight.shape[1], device=weight.device), group)
    found: list[Tensor] = []
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        best = cast("Tensor", fitted.minima)[rows]
        values = grouped(weight.detach()[rows].float(), group)
        split = Split(values, fitted.scales[rows], there, grid, norm)
        least = split.lost(best)
        for exact in split.steps(best, iterations):
            minima = round_minimum(exact)
            lost = split.lost(minima)
            best = torch.where(lost < least, minima, best)
            least = torch.minimum(lost, least)
        found.append(best)
    return quantize(weight, replace(fitted, minima=torch.cat(found)), grid)
