"""Numbers onto the levels of a grid, levels into codes, and codes into levels.

A level is what a code stands for in units of its scale: a whole number (the code less the zero
point where there is one), or a number of the grid's table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from attar.core.grid import Grid
from attar.core.levels import FLOATS, LEVELS, PEAKS, MiniFloat, Numbers

_EXPONENT = 0x7F800000  # the bits of a float32 that are its power of two
_CELLS = 32  # in a length of 1; the levels of NF4 are further from each other than 1/32


@dataclass(frozen=True)
class _Table:
    """The level of every code, [codes]; those there are in ascending order, and their codes."""

    by_code: Tensor
    ascending: Tensor
    codes: Tensor


@dataclass(frozen=True)
class _Cells:
    """Midpoints between levels, infinity after the last; how many lie below each cell's start."""

    between: Tensor
    below: Tensor


def snap(scaled: Tensor, grid: Grid, zeros: Tensor | None = None) -> Tensor:
    """The nearest level of each number, a weight over its scale in float32; may write into it.

    Numbers halfway go to the even one of whole numbers and of floats.
    """
    if grid.numbers in FLOATS:
        return _snap_to_float(scaled, FLOATS[grid.numbers], PEAKS[grid.numbers])
    if grid.levels is not None:
        return _snap_to_table(scaled, grid.numbers)
    if zeros is None:
        return scaled.round_().clamp_(grid.low, grid.high)
    return scaled.add_(zeros).round_().clamp_(grid.low, grid.high).sub_(zeros)


def _snap_to_float(scaled: Tensor, kind: MiniFloat, peak: float) -> Tensor:
    """Round to a multiple of the distance that there is between the floats around a number."""
    power = (scaled.view(torch.int32) & _EXPONENT).view(torch.float32)
    step = power.clamp_min_(kind.smallest).mul_(2.0**-kind.mantissa)
    return scaled.div_(step).round_().mul_(step).clamp_(-peak, peak)


def _snap_to_table(scaled: Tensor, numbers: Numbers) -> Tensor:
    """Guess by cells, none of which holds more than one midpoint, then compare with that one.

    Several times as fast as a search. The levels of the table run from -1 to 1.
    """
    table, near = _table(numbers, scaled.device), _cells(numbers, scaled.device)
    flat = scaled.reshape(-1)
    cell = flat.clamp(-1, 1).mul_(_CELLS).add_(_CELLS).int()
    place = near.below.index_select(0, cell)
    place += flat > near.between.index_select(0, place)
    return table.ascending.index_select(0, place).view(scaled.shape)


def levels_of(codes: Tensor, grid: Grid) -> Tensor:
    """What codes stand for, before zero points are taken off: any shape."""
    if grid.levels is None:
        return codes
    table = _table(grid.numbers, codes.device)
    return table.by_code.index_select(0, codes.int().reshape(-1)).view(codes.shape)


def codes_of(levels: Tensor, grid: Grid) -> Tensor:
    """The codes of levels that `snap` gave, zero points added back: int16 of any shape."""
    if grid.levels is None:
        return levels.round().to(torch.int16)
    table = _table(grid.numbers, levels.device)
    return table.codes[torch.searchsorted(table.ascending, levels.contiguous())]


@cache
def _table(numbers: Numbers, device: torch.device) -> _Table:
    codes: dict[float, int] = {}  # without NaN, and of two zeros the first
    for code, level in enumerate(LEVELS[numbers]):
        if level == level:
            codes.setdefault(level, code)
    ascending = sorted(codes)
    order = [codes[level] for level in ascending]
    return _Table(
        torch.tensor(LEVELS[numbers], device=device),
        torch.tensor(ascending, device=device),
        torch.tensor(order, dtype=torch.int16, device=device),
    )


@cache
def _cells(numbers: Numbers, device: torch.device) -> _Cells:
    ascending = _table(numbers, device).ascending
    between = (ascending[1:] + ascending[:-1]) / 2
    starts = torch.arange(-_CELLS, _CELLS + 1, device=device) / _CELLS
    below = torch.searchsorted(between, starts - 1e-3)  # rounding may take a number one cell up
    infinity = torch.full((1,), torch.inf, device=device)
    return _Cells(torch.cat([between, infinity]), below.int())
