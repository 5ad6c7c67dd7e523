"""GPTQ: round a weight column by column, moving each error onto the columns still to come.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (arXiv 2210.17323), with columns in order of falling input energy, and scales
fixed before the first column is rounded, so that no group is permuted on disk.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

import torch
from torch import Tensor

from attar.core.grid import Grid
from attar.ops.gram import inverse_factor, lost_share, without_dead
from attar.ops.levels import snap
from attar.ops.rounding import (
    Codes,
    Scales,
    decode,
    dequantize,
    encode,
    fit_scales,
    quantize,
    round_minimum,
    round_scale,
    spread,
)

_BLOCK = 64
_ROWS = 64
_NEARER = 8  # times that a wanted level is brought nearer to its code's


def solve(
    weight: Tensor, gram: Tensor, grid: Grid, sweeps: int = 1, keep: Tensor | None = None
) -> Codes:
    """Codes and scales that make (W - Q) X small, for a weight [rows, width].

    gram: [width, width], the sum or mean of x xT over calibration tokens, float32 or better.
    Scales are fitted to the weights (weighted by the inputs' energy), the columns are rounded
    by GPTQ, then `sweeps` times the scales, and minima after them, are refitted to the codes in
    closed form under the gram and every code is moved to where it is best given all others.
    Where `keep` [rows, width] is False, the rounded weight is zero, and the others make up for
    it; a grid with a minimum has no zero.

    Inputs that were never active do not matter to the error, and are rounded to nearest.
    """
    weight, gram = weight.detach().float(), gram.float()
    gram = without_dead(gram)
    fitted = fit_scales(weight, grid, gram.diagonal())
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    inverse = inverse_factor(gram, order)
    codes = _columns(weight, fitted, grid, inverse, order, keep)
    for _ in range(sweeps):
        codes = _sweep(weight, codes, gram, grid, keep)
    return codes


def _columns(
    weight: Tensor,
    fitted: Scales,
    grid: Grid,
    inverse: Tensor,
    order: Tensor,
    keep: Tensor | None,
) -> Codes:
    """The loop over columns; everything is kept transposed, so that a column is contiguous."""
    width = weight.shape[1]
    if fitted.minima is not None:
        weight = weight - spread(fitted.minima, grid.group_for(width), width)
    rest = weight.t()[order].contiguous()
    scales = _by_column(fitted.scales, grid, width)[order].contiguous()
    zeros = None
    if fitted.zeros is not None:
        zeros = _by_column(fitted.zeros, grid, width)[order].contiguous()
    gone = None if keep is None else ~keep.t()[order]
    reciprocal = scales.reciprocal()
    levels = torch.empty_like(rest)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        errors = torch.empty(stop - start, rest.shape[1], device=rest.device)
        for column in range(start, stop):
            value = rest[column]
            level = snap(value * reciprocal[column], grid, None if zeros is None else zeros[column])
            if gone is not None:
                level = level.masked_fill(gone[column], 0.0)
            levels[column] = level
            error = (value - level * scales[column]).div_(inverse[column, column])
            errors[column - start] = error
            if column + 1 < stop:
                rest[column + 1 : stop].addr_(inverse[column, column + 1 : stop], error, alpha=-1)
        if stop < width:
            rest[stop:].addmm_(inverse[start:stop, stop:].t(), errors, alpha=-1)
    back = torch.empty_like(levels)
    back[order] = levels
    return encode(back.t().contiguous(), fitted, grid)


def _by_column(values: Tensor, grid: Grid, width: int) -> Tensor:
    """What is kept for each group, for each weight and transposed: [width, rows]."""
    return spread(values, grid.group_for(width), width).t()


def _sweep(weight: Tensor, codes: Codes, gram: Tensor, grid: Grid, keep: Tensor | None) -> Codes:
    """Refit the scales and minima to the codes, then move every code to its best."""
    error = (weight - dequantize(codes, grid)) @ gram
    levels = decode(codes, grid)
    fitted = _refit(levels, codes, error, gram, grid)
    return encode(_descend(levels, fitted, error, gram, grid, keep), fitted, grid)


def _refit(levels: Tensor, codes: Codes, error: Tensor, gram: Tensor, grid: Grid) -> Scales:
    """Scales and minima that are best for the levels under the gram, group after group.

    levels: [rows, width]; error: (W - Q) gram, [rows, width], which is kept up to date.
    """
    width = error.shape[1]
    group = grid.group_for(width)
    scales = codes.scales.float().clone()
    minima = None if codes.minima is None else codes.minima.float().clone()
    for index, start in enumerate(range(0, width, group)):
        stop = min(start + group, width)
        block = levels[:, start:stop]
        moved = block @ gram[start:stop]
        above = (block * error[:, start:stop]).sum(1)
        below = (block * moved[:, start:stop]).sum(1)
        best = scales[:, index] + torch.where(below > 0, above / below, 0.0)
        delta = _worth(round_scale(best, grid.powers), scales[:, index], above, below)
        scales[:, index] += delta
        error.addcmul_(delta[:, None], moved, value=-1)
        if minima is not None:
            moved = gram[start:stop].sum(0)
            above, below = error[:, start:stop].sum(1), moved[start:stop].sum()
            best = minima[:, index] + torch.where(below > 0, above / below, 0.0)
            delta = _worth(round_minimum(best), minima[:, index], above, below)
            minima[:, index] += delta
            error.addr_(delta, moved, alpha=-1)
    return Scales(scales, codes.zeros, minima)


def _worth(new: Tensor, old: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """How far to move a number of each row: not at all where rounding it undoes the gain."""
    delta = new - old
    gain = 2 * delta * above - delta.square() * below
    return torch.where(gain > 0, delta, 0.0)


def _descend(
    levels: Tensor, fitted: Scales, error: Tensor, gram: Tensor, grid: Grid, keep: Tensor | None
) -> Tensor:
    """Move every level to where it is best given all the others, column after column.

    levels: [rows, width]; error: (W - Q) gram, [rows, width].
    """
    width = error.shape[1]
    scales = _by_column(fitted.scales, grid, width).contiguous()
    plain = levels.t().contiguous()
    zeros = None
    if fitted.zeros is not None:
        zeros = _by_column(fitted.zeros, grid, width).contiguous()
    stays = None if keep is None else keep.t().float().contiguous()
    product = error.t().contiguous().neg_()  # transposed, so that a column is contiguous
    diagonal = gram.diagonal().clamp_min(1e-30)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        moves = torch.zeros(stop - start, plain.shape[1], device=plain.device)
        for column in range(start, stop):
            wanted = plain[column] - product[column] / (diagonal[column] * scales[column])
            new = snap(wanted, grid, None if zeros is None else zeros[column])
            if stays is not None:
                new = new * stays[column]
            move = (new - plain[column]) * scales[column]
            plain[column] = new
            moves[column - start] = move
            if column + 1 < stop:
                product[column + 1 : stop].addr_(gram[column, column + 1 : stop], move)
        product[:start].addmm_(gram[:start, start:stop], moves)
        product[stop:].addmm_(gram[stop:, start:stop], moves)
    return plain.t().contiguous()


def wanted_levels(weight: Tensor, codes: Codes, gram: Tensor, grid: Grid) -> Tensor:
    """Where each level would be best given all the others, before it is rounded: [rows, width].

    As near to that as still rounds to the code's own level. That of an input that was never
    active is its level.
    """
    width = weight.shape[1]
    error = (weight.detach().float() - dequantize(codes, grid)) @ gram.float()
    scales = spread(codes.scales, grid.group_for(width), width)
    zeros = None if codes.zeros is None else spread(codes.zeros, grid.group_for(width), width)
    levels, diagonal = decode(codes, grid), gram.diagonal().float()
    move = torch.where(diagonal > 0, error / (diagonal.clamp_min(1e-30) * scales), 0.0)
    for _ in range(_NEARER):
        left = snap(levels + move, grid, zeros) != levels
        move = torch.where(left, move * 0.75, move)
    return levels + move.masked_fill(snap(levels + move, grid, zeros) != levels, 0.0)


def error_of(weight: Tensor, codes: Codes, gram: Tensor, grid: Grid) -> float:
    """The `lost_share` of codes; of tall weights estimated from a few rows at even distances."""
    few = slice(None, None, max(1, len(weight) // _ROWS))
    return lost_share(weight[few], dequantize(codes.rows(few), grid), gram)


def nearest(weight: Tensor, grid: Grid, importance: Tensor | None = None, power: int = 2) -> Codes:
    """Round to nearest on fitted scales: what GPTQ has to beat."""
    return quantize(weight, fit_scales(weight, grid, importance, power=power), grid)
