"""Putting weights on a grid: scales, zero points, and codes.

A weight matrix is [rows, width]; a group is a run of consecutive inputs of one row that share
a scale. Where the width is no multiple of the group, the last group of a row is shorter.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from attar.core.grid import Grid
from attar.ops.levels import codes_of, levels_of, snap

SMALLEST = 2.0**-14  # float16's smallest normal number
LARGEST = 65280.0  # the largest number of 8 significant bits that float16 holds
_SHRINK = tuple(1.0 - 0.03 * step for step in range(12))
_ELEMENTS = 1 << 18  # of weights handled at once: about what a core's cache holds


@dataclass(frozen=True)
class Codes:
    """What a grid made of a matrix.

    codes: int16 [rows, width]; scales: [rows, groups]; zeros, minima: [rows, groups] or None.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    minima: Tensor | None = None

    def rows(self, rows: slice | Tensor) -> Codes:
        """Those of some rows."""
        zeros, minima = (None if t is None else t[rows] for t in (self.zeros, self.minima))
        return Codes(self.codes[rows], self.scales[rows], zeros, minima)


@dataclass(frozen=True)
class Scales:
    """A scale, and a zero point or a minimum where the grid has one, for every group.

    All are [rows, groups].
    """

    scales: Tensor
    zeros: Tensor | None = None
    minima: Tensor | None = None

    def rows(self, rows: slice) -> Scales:
        """Those of some rows."""
        zeros, minima = (None if t is None else t[rows] for t in (self.zeros, self.minima))
        return Scales(self.scales[rows], zeros, minima)


def round_scale(scale: Tensor, powers: bool = False) -> Tensor:
    """The nearest scale that float16, bfloat16 and float32 all hold exactly.

    At most 8 significant bits, magnitude within float16's normal range; 0 becomes the smallest.
    With `powers` the nearest power of two, without a sign.
    """
    if powers:
        size = scale.abs().float().clamp(SMALLEST, 2.0**15)
        return (size.view(torch.int32) + (1 << 22) & 0x7F800000).view(torch.float32)
    size = scale.abs().to(torch.bfloat16).float().clamp(SMALLEST, LARGEST)
    return torch.where(scale < 0, -size, size)


def round_minimum(minimum: Tensor) -> Tensor:
    """The nearest minimum that float16, bfloat16 and float32 all hold: as scales, or zero."""
    return torch.where(minimum.abs() < SMALLEST / 2, 0.0, round_scale(minimum))


def through(exact: Tensor, rounded: Tensor) -> Tensor:
    """What was rounded, in the dtype of what was not, and with its gradient (straight through)."""
    return rounded.detach().to(exact.dtype) + (exact - exact.detach())


def grouped(weight: Tensor, group: int) -> Tensor:
    """[rows, width] as [rows, groups, group], the last group filled with zeros."""
    rows, width = weight.shape
    missing = -width % group
    if missing:
        weight = functional.pad(weight, (0, missing))
    return weight.reshape(rows, -1, group)


def spread(values: Tensor, group: int, width: int) -> Tensor:
    """What is kept for each group, [rows, groups], for each weight: float32 [rows, width]."""
    return values.float().repeat_interleave(group, 1)[:, :width]


def fit_scales(
    weight: Tensor,
    grid: Grid,
    importance: Tensor | None = None,
    positive: bool = False,
    power: int = 2,
) -> Scales:
    """Scales that make the rounded weights nearest to `weight`, group by group.

    Minimizes sum(importance * |weight - rounded|^power) over a fixed set of shrunken ranges (both
    signs of the scale where the levels are not the same on both sides of zero), then refits each
    scale, and minimum, to the codes by least squares, where that is less. Where scales are powers
    of two and all weights alike, the fourth power: half a range cuts off too much of what stands
    out.

    weight: [rows, width], any float; importance: [width], not negative, or None for all alike;
    positive: no scale is below zero, for engines that know none; power: 2, 3 or 4.
    """
    group = grid.group_for(weight.shape[1])
    power = 4 if grid.powers and importance is None else power
    if importance is None:
        importance = torch.ones(weight.shape[1], device=weight.device)
    weights = grouped(importance.float().clamp_min(1e-12)[None], group)
    if weight.shape[1] % group:  # what only fills the last group must not count
        weights[..., -1, weight.shape[1] % group :] = 0
    rows = max(1, _ELEMENTS // weight.shape[1])
    parts = [
        _fit(_filled(part.float(), group), weights, grid, positive, power)
        for part in weight.detach().split(rows)
    ]
    return Scales(
        torch.cat([part.scales for part in parts]),
        torch.cat([cast("Tensor", part.zeros) for part in parts]) if grid.zero_point else None,
        torch.cat([cast("Tensor", part.minima) for part in parts]) if grid.minimum else None,
    )


def _filled(weight: Tensor, group: int) -> Tensor:
    """As `grouped`, a short last group filled with what is in it, so that it has its own range."""
    parts, there = grouped(weight, group), weight.shape[1] % group
    if there:
        parts[:, -1, there:] = parts[:, -1, :1]
    return parts


def _fit(weight: Tensor, importance: Tensor, grid: Grid, positive: bool, power: int) -> Scales:
    best = torch.full_like(weight[..., 0], torch.inf)
    none = torch.zeros_like(best)
    found = Scales(
        torch.full_like(best, SMALLEST),
        none if grid.zero_point else None,
        none if grid.minimum else None,
    )
    for tried in _candidates(weight, grid):
        if positive:
            tried = Scales(tried.scales.abs(), tried.zeros, tried.minima)
        error = _error(weight, importance, tried, grid, power)
        better = error < best
        best, found = torch.where(better, error, best), _where(better, tried, found)
    refit = _refit(weight, importance, found, grid)
    return _where(_error(weight, importance, refit, grid, power) < best, refit, found)


def _where(better: Tensor, new: Scales, old: Scales) -> Scales:
    pairs = ((new.scales, old.scales), (new.zeros, old.zeros), (new.minima, old.minima))
    chosen = (
        None if one is None or other is None else torch.where(better, one, other)
        for one, other in pairs
    )
    return Scales(*cast("tuple[Tensor, Tensor | None, Tensor | None]", tuple(chosen)))


def _candidates(weight: Tensor, grid: Grid) -> Iterator[Scales]:
    """Scales to try, for [rows, groups, group]."""
    low, high = weight.amin(-1), weight.amax(-1)
    extreme = torch.where(-low >= high, low, high)
    if grid.zero_point:
        low, high = low.clamp_max(0), high.clamp_min(0)
        for shrink in _SHRINK:
            scale = round_scale((high - low) * (shrink / grid.high)).abs()
            yield Scales(scale, (-(low * shrink) / scale).round().clamp(0, grid.high))
    elif grid.minimum:
        for shrink in _SHRINK:
            scale = round_scale((high - low) * (shrink / grid.high)).abs()
            yield Scales(scale, None, round_minimum((low + high - scale * grid.high) / 2))
    elif grid.powers:
        for factor in (2.0, 1.0, 0.5):
            yield Scales(round_scale(extreme * (factor / grid.ends[1]), powers=True))
    elif grid.bits == 8:
        yield Scales(round_scale(extreme.abs() / grid.ends[1]))
    else:
        for shrink in _SHRINK:
            yield from (Scales(round_scale(extreme * (shrink / end))) for end in grid.ends)


def _snapped(weight: Tensor, fitted: Scales, grid: Grid) -> tuple[Tensor, Tensor]:
    """What is to be rounded, its minimum taken off, and its levels: [rows, groups, group]."""
    rest = weight if fitted.minima is None else weight - fitted.minima[..., None]
    zeros = None if fitted.zeros is None else fitted.zeros[..., None]
    return rest, snap(torch.div(rest, fitted.scales[..., None]), grid, zeros)


def _error(weight: Tensor, importance: Tensor, fitted: Scales, grid: Grid, power: int) -> Tensor:
    rest, levels = _snapped(weight, fitted, grid)
    missed = levels.mul_(fitted.scales[..., None]).sub_(rest)
    if power == 2:
        return missed.square_().mul_(importance).sum(-1)
    powers = missed.square()
    powers = powers.mul_(missed.abs_()) if power == 3 else powers.square_()
    return powers.mul_(importance).sum(-1)


def _refit(weight: Tensor, importance: Tensor, fitted: Scales, grid: Grid) -> Scales:
    """The scale, and minimum, of least squares for the codes that these give."""
    _, levels = _snapped(weight, fitted, grid)
    above = (importance * weight * levels).sum(-1)
    below = (importance * levels * levels).sum(-1)
    if not grid.minimum:
        scale = torch.where(below > 0, above / below.clamp_min(1e-30), fitted.scales)
        return Scales(round_scale(scale, grid.powers), fitted.zeros)
    total = importance.sum(-1).expand_as(above)
    mean = (importance * weight).sum(-1) / total
    middle = (importance * levels).sum(-1) / total
    below = below / total - middle.square()
    exact = (above / total - mean * middle) / below.clamp_min(1e-30)
    scale = round_scale(torch.where(below > 1e-6, exact, fitted.scales))
    return Scales(scale, None, round_minimum(mean - scale * middle))


def quantize(weight: Tensor, fitted: Scales, grid: Grid) -> Codes:
    """The nearest code of every weight, given the scales; some rows at a time."""
    rows = max(1, _ELEMENTS // weight.shape[1])
    starts = range(0, len(weight), rows)
    parts = [_nearest(weight, fitted, grid, slice(start, start + rows)) for start in starts]
    return Codes(torch.cat(parts), fitted.scales, fitted.zeros, fitted.minima)


def _nearest(weight: Tensor, fitted: Scales, grid: Grid, part: slice) -> Tensor:
    """The codes of some rows."""
    weight, fitted = weight[part], fitted.rows(part)
    width = weight.shape[1]
    group = grid.group_for(width)
    rest = weight.detach().float()
    if fitted.minima is not None:
        rest = rest - spread(fitted.minima, group, width)
    zeros = None if fitted.zeros is None else spread(fitted.zeros, group, width)
    levels = snap(rest / spread(fitted.scales, group, width), grid, zeros)
    return encode(levels, fitted, grid).codes


def encode(levels: Tensor, fitted: Scales, grid: Grid) -> Codes:
    """Levels [rows, width] as codes beside the scales that they belong to."""
    if fitted.zeros is not None:
        width = levels.shape[1]
        levels = levels + spread(fitted.zeros, grid.group_for(width), width)
    return Codes(codes_of(levels, grid), fitted.scales, fitted.zeros, fitted.minima)


def decode(result: Codes, grid: Grid) -> Tensor:
    """The levels of codes, zero points taken off: float32 [rows, width]."""
    levels = levels_of(result.codes, grid).float()
    if result.zeros is not None:
        width = levels.shape[1]
        levels = levels - spread(result.zeros, grid.group_for(width), width)
    return levels


def dequantize(result: Codes, grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights that codes stand for, [rows, width]."""
    levels, fitted = levels_of(result.codes, grid), Scales(result.scales, None, result.minima)
    if result.zeros is None:
        return weights_of(levels, fitted, grid, dtype)
    group, width = grid.group_for(levels.shape[1]), levels.shape[1]
    shifted = grouped(levels, group).to(dtype) - result.zeros[..., None].to(dtype)
    return weights_of(shifted.reshape(len(levels), -1)[:, :width], fitted, grid, dtype)


def weights_of(levels: Tensor, fitted: Scales, grid: Grid, dtype: torch.dtype) -> Tensor:
    """The weights that levels stand for, zero points taken off before: [rows, width]."""
    width = levels.shape[1]
    # whole numbers are exact in any dtype, so that the product is rounded once there
    whole = grid.levels is None and not grid.minimum
    exact = dtype if whole else torch.promote_types(dtype, torch.float32)
    weight = grouped(levels, grid.group_for(width)).to(exact) * fitted.scales[..., None].to(exact)
    if fitted.minima is not None:
        weight = weight + fitted.minima[..., None].to(exact)
    return weight.reshape(len(weight), -1)[:, :width].to(dtype)
