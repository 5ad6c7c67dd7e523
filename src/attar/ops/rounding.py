"""Putting weights on a grid: scales, zero points, codes, and their bytes.

A weight matrix is [rows, width]; a group is a run of consecutive inputs of one row that share
a scale. Where the width is no multiple of the group, the last group of a row is shorter.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attar.core.grid import Grid

SMALLEST = 2.0**-14  # float16's smallest normal number
LARGEST = 65280.0  # the largest number of 8 significant bits that float16 holds
_SHRINK = tuple(1.0 - 0.03 * step for step in range(12))
_ELEMENTS = 1 << 18  # of weights handled at once: about what a core's cache holds


@dataclass(frozen=True)
class Codes:
    """What a grid made of a matrix.

    codes: int16 [rows, width]; scales: [rows, groups]; zeros: [rows, groups] or None.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None


@dataclass(frozen=True)
class Scales:
    """A scale, and a zero point where the grid has one, for every group: [rows, groups]."""

    scales: Tensor
    zeros: Tensor | None


def round_scale(scale: Tensor) -> Tensor:
    """The nearest scale that float16, bfloat16 and float32 all hold exactly.

    At most 8 significant bits, magnitude within float16's normal range; 0 becomes the smallest.
    """
    size = scale.abs().to(torch.bfloat16).float().clamp(SMALLEST, LARGEST)
    return torch.where(scale < 0, -size, size)


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


def fit_scales(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> Scales:
    """Scales that make the rounded weights nearest to `weight`, group by group.

    Minimizes sum(importance * (weight - rounded)^2) over a fixed set of shrunken ranges (both
    signs of the scale on a symmetric grid, whose negative side has one code more), then
    refits each scale to the codes by least squares.

    weight: [rows, width], any float; importance: [width], not negative, or None for all alike.
    """
    group = grid.group_for(weight.shape[1])
    if importance is None:
        importance = torch.ones(weight.shape[1], device=weight.device)
    weights = grouped(importance.float().clamp_min(1e-12)[None], group)
    if weight.shape[1] % group:  # what only fills the last group must not count
        weights[..., -1, weight.shape[1] % group :] = 0
    rows = max(1, _ELEMENTS // weight.shape[1])
    parts = [
        _fit(grouped(part.float(), group), weights, grid) for part in weight.detach().split(rows)
    ]
    zeros = (
        torch.cat([part.zeros for part in parts if part.zeros is not None], 0)
        if (grid.zero_point)
        else None
    )
    return Scales(torch.cat([part.scales for part in parts], 0), zeros)


def _fit(weight: Tensor, importance: Tensor, grid: Grid) -> Scales:
    best = torch.full_like(weight[..., 0], torch.inf)
    scales = torch.full_like(best, SMALLEST)
    zeros = torch.zeros_like(best) if grid.zero_point else None
    for scale, zero in _candidates(weight, grid):
        scale = round_scale(scale)
        error = _error(weight, importance, scale, zero, grid)
        better = error < best
        best = torch.where(better, error, best)
        scales = torch.where(better, scale, scales)
        if zeros is not None and zero is not None:
            zeros = torch.where(better, zero, zeros)
    refit = round_scale(_refit(weight, importance, scales, zeros, grid))
    better = _error(weight, importance, refit, zeros, grid) < best
    return Scales(torch.where(better, refit, scales), zeros)


def _candidates(weight: Tensor, grid: Grid):
    """Pairs of scale and zero point to try, for [rows, groups, group]."""
    if grid.zero_point:
        low = weight.amin(-1).clamp_max(0)
        high = weight.amax(-1).clamp_min(0)
        for shrink in _SHRINK:
            scale = round_scale((high - low) * (shrink / grid.high)).abs()
            yield scale, (-(low * shrink) / scale).round().clamp(0, grid.high)
        return
    low, high = weight.amin(-1), weight.amax(-1)
    extreme = torch.where(-low >= high, low, high)
    if grid.bits == 8:
        yield extreme.abs() / 127, None
        return
    for shrink in _SHRINK:
        yield extreme * (shrink / grid.low), None
        yield extreme * (shrink / grid.high), None


def _error(
    weight: Tensor, importance: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid
) -> Tensor:
    scale = scale[..., None]
    shift = 0.0 if zero is None else zero[..., None]
    codes = torch.div(weight, scale).add_(shift).round_().clamp_(grid.low, grid.high)
    rest = codes.sub_(shift).mul_(scale).sub_(weight)
    return rest.square_().mul_(importance).sum(-1)


def _refit(
    weight: Tensor, importance: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid
) -> Tensor:
    shift = 0.0 if zero is None else zero[..., None]
    codes = (weight / scale[..., None] + shift).round().clamp(grid.low, grid.high) - shift
    above = (importance * weight * codes).sum(-1)
    below = (importance * codes * codes).sum(-1)
    return torch.where(below > 0, above / below.clamp_min(1e-30), scale)


def quantize(weight: Tensor, fitted: Scales, grid: Grid) -> Codes:
    """The nearest code of every weight, given the scales."""
    group = grid.group_for(weight.shape[1])
    spread = fitted.scales.float().repeat_interleave(group, 1)[:, : weight.shape[1]]
    codes = weight.float() / spread
    if fitted.zeros is not None:
        codes += fitted.zeros.float().repeat_interleave(group, 1)[:, : weight.shape[1]]
    codes = codes.round_().clamp_(grid.low, grid.high).to(torch.int16)
    return Codes(codes, fitted.scales, fitted.zeros)


def dequantize(result: Codes, group: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights that codes stand for, [rows, width]."""
    codes, width = result.codes, result.codes.shape[1]
    codes = grouped(codes, group).to(dtype)
    if result.zeros is not None:
        codes = codes - result.zeros[..., None].to(dtype)  # whole numbers, exact in any dtype
    weight = codes * result.scales[..., None].to(dtype)
    return weight.reshape(len(weight), -1)[:, :width]


def packed_width(width: int, bits: int) -> int:
    """Bytes of a row of `width` codes: runs of eight codes take `bits` bytes."""
    return width if bits == 8 else -(-width // 8) * bits


def pack(codes: Tensor, grid: Grid) -> Tensor:
    """Codes as bytes, uint8 [rows, packed_width], little-endian within a run of eight.

    Symmetric codes are stored unsigned, 2^(bits-1) added.
    """
    offset = 0 if grid.zero_point else 2 ** (grid.bits - 1)
    values = codes.to(torch.int16) + offset
    if grid.bits == 8:
        return values.to(torch.uint8)
    rows, width = values.shape
    values = functional.pad(values, (0, -width % 8)).reshape(rows, -1, 8).to(torch.int64)
    shifts = torch.arange(8, device=codes.device) * grid.bits
    word = (values << shifts).sum(-1, keepdim=True)
    bytes_ = (word >> (torch.arange(grid.bits, device=codes.device) * 8)) & 255
    return bytes_.reshape(rows, -1).to(torch.uint8)


def unpack(packed: Tensor, grid: Grid, width: int) -> Tensor:
    """The codes that `pack` stored, int16 [rows, width]."""
    offset = 0 if grid.zero_point else 2 ** (grid.bits - 1)
    if grid.bits == 8:
        return packed.to(torch.int16) - offset
    if grid.bits == 4:
        values = torch.stack((packed & 15, packed >> 4), -1).reshape(len(packed), -1)
        return values[:, :width].to(torch.int16) - offset
    runs = packed.reshape(len(packed), -1, grid.bits).to(torch.int32)
    word = (runs << (torch.arange(grid.bits, device=packed.device) * 8)).sum(-1, keepdim=True)
    values = (word >> (torch.arange(8, device=packed.device) * grid.bits)) & (2**grid.bits - 1)
    return values.reshape(len(packed), -1)[:, :width].to(torch.int16) - offset
