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
from attar.ops.gram import inverse_factor, lost_share
from attar.ops.rounding import Codes, Scales, dequantize, fit_scales, quantize, round_scale

_BLOCK = 64
_ROWS = 64


def solve(
    weight: Tensor, gram: Tensor, grid: Grid, sweeps: int = 1, keep: Tensor | None = None
) -> Codes:
    """Codes and scales that make (W - Q) X small, for a weight [rows, width].

    gram: [width, width], the sum or mean of x xT over calibration tokens, float32 or better.
    Scales are fitted to the weights (weighted by the inputs' energy), the columns are rounded
    by GPTQ, then `sweeps` times the scales are refitted to the codes in closed form under the
    gram and every code is moved to where it is best given all others. Where `keep` [rows,
    width] is False, the rounded weight is zero, and the others make up for it.

    Inputs that were never active do not matter to the error, and are rounded to nearest.
    """
    weight, gram = weight.detach().float(), gram.float()
    energy = gram.diagonal().clone()
    dead = energy <= 0
    gram = gram.clone()
    gram.diagonal()[dead] = 1.0
    fitted = fit_scales(weight, grid, energy.masked_fill(dead, energy.mean().item() or 1.0))
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
    group = grid.group_for(width)
    rest = weight.t()[order].contiguous()
    scales = fitted.scales.float().repeat_interleave(group, 1)[:, :width].t()[order].contiguous()
    zeros = None
    if fitted.zeros is not None:
        zeros = fitted.zeros.float().repeat_interleave(group, 1)[:, :width].t()[order].contiguous()
    gone = None if keep is None else ~keep.t()[order]
    reciprocal = scales.reciprocal()
    codes = torch.empty_like(rest)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        errors = torch.empty(stop - start, rest.shape[1], device=rest.device)
        for column in range(start, stop):
            value = rest[column]
            code = value * reciprocal[column]
            if zeros is not None:
                code += zeros[column]
            code.round_().clamp_(grid.low, grid.high)
            if gone is not None:
                code = torch.where(gone[column], 0.0 if zeros is None else zeros[column], code)
            codes[column] = code
            back = code if zeros is None else code - zeros[column]
            error = (value - back * scales[column]).div_(inverse[column, column])
            errors[column - start] = error
            if column + 1 < stop:
                rest[column + 1 : stop].addr_(inverse[column, column + 1 : stop], error, alpha=-1)
        if stop < width:
            rest[stop:].addmm_(inverse[start:stop, stop:].t(), errors, alpha=-1)
    back = torch.empty_like(codes)
    back[order] = codes
    return Codes(back.t().to(torch.int16).contiguous(), fitted.scales, fitted.zeros)


def _sweep(weight: Tensor, codes: Codes, gram: Tensor, grid: Grid, keep: Tensor | None) -> Codes:
    """Refit the scales to the codes, then move every code to its best."""
    error = (weight - dequantize(codes, grid.group_for(weight.shape[1]))) @ gram
    scales = _refit(codes, error, gram, grid)
    return _descend(scales, error, gram, grid, keep)


def _refit(codes: Codes, error: Tensor, gram: Tensor, grid: Grid) -> Codes:
    """Scales that are best for the codes under the gram, group after group.

    error: (W - Q) gram, [rows, width], which is kept up to date.
    """
    width = error.shape[1]
    group = grid.group_for(width)
    scales = codes.scales.float().clone()
    plain = _shifted(codes, group)
    for index, start in enumerate(range(0, width, group)):
        stop = min(start + group, width)
        block = plain[:, start:stop]
        moved = block @ gram[start:stop]
        above = (block * error[:, start:stop]).sum(1)
        below = (block * moved[:, start:stop]).sum(1)
        new = round_scale(scales[:, index] + torch.where(below > 0, above / below, 0.0))
        delta = new - scales[:, index]
        # rounding the scale may undo the gain; keep what is better for each row
        gain = 2 * delta * above - delta.square() * below
        delta = torch.where(gain > 0, delta, 0.0)
        scales[:, index] += delta
        error.addcmul_(delta[:, None], moved, value=-1)
    return Codes(codes.codes, scales, codes.zeros)


def _shifted(codes: Codes, group: int) -> Tensor:
    """Codes less their zero points, in float32."""
    plain = codes.codes.float()
    if codes.zeros is not None:
        plain -= codes.zeros.float().repeat_interleave(group, 1)[:, : plain.shape[1]]
    return plain


def _descend(codes: Codes, error: Tensor, gram: Tensor, grid: Grid, keep: Tensor | None) -> Codes:
    """Move every code to where it is best given all the others, column after column.

    error: (W - Q) gram, [rows, width].
    """
    width = error.shape[1]
    group = grid.group_for(width)
    scales = codes.scales.float().repeat_interleave(group, 1)[:, :width].t().contiguous()
    plain = _shifted(codes, group).t().contiguous()
    low, high = float(grid.low), float(grid.high)
    if codes.zeros is not None:
        zeros = codes.zeros.float().repeat_interleave(group, 1)[:, :width].t().contiguous()
    else:
        zeros = None
    stays = None if keep is None else keep.t().float().contiguous()
    product = error.t().neg()  # kept transposed, so that a column is contiguous
    diagonal = gram.diagonal().clamp_min(1e-30)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        moves = torch.zeros(stop - start, plain.shape[1], device=plain.device)
        for column in range(start, stop):
            wanted = plain[column] - product[column] / (diagonal[column] * scales[column])
            if zeros is None:
                new = wanted.round_().clamp_(low, high)
            else:
                new = (wanted + zeros[column]).round_().clamp_(low, high) - zeros[column]
            if stays is not None:
                new = new * stays[column]
            move = (new - plain[column]) * scales[column]
            plain[column] = new
            moves[column - start] = move
            if column + 1 < stop:
                product[column + 1 : stop].addr_(gram[column, column + 1 : stop], move)
        product[:start].addmm_(gram[:start, start:stop], moves)
        product[stop:].addmm_(gram[stop:, start:stop], moves)
    back = plain if zeros is None else plain + zeros
    return Codes(back.t().round().to(torch.int16).contiguous(), codes.scales, codes.zeros)


def wanted_codes(weight: Tensor, codes: Codes, gram: Tensor, grid: Grid) -> Tensor:
    """Where each code would be best given all the others, before it is rounded: [rows, width].

    In codes, and within the half on either side of the code that it rounds to. That of an input
    that was never active is its code.
    """
    width = weight.shape[1]
    group = grid.group_for(width)
    error = (weight.detach().float() - dequantize(codes, group)) @ gram.float()
    scales = codes.scales.float().repeat_interleave(group, 1)[:, :width]
    diagonal = gram.diagonal().float()
    move = torch.where(diagonal > 0, error / (diagonal.clamp_min(1e-30) * scales), 0.0)
    return codes.codes + move.clamp(-0.49, 0.49)


def error_of(weight: Tensor, codes: Codes, gram: Tensor, group: int) -> float:
    """The `lost_share` of codes; of tall weights estimated from a few rows at even distances."""
    few = slice(None, None, max(1, len(weight) // _ROWS))
    zeros = None if codes.zeros is None else codes.zeros[few]
    codes = Codes(codes.codes[few], codes.scales[few], zeros)
    return lost_share(weight[few], dequantize(codes, group), gram)


def nearest(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> Codes:
    """Round to nearest on fitted scales: what GPTQ has to beat."""
    return quantize(weight, fit_scales(weight, grid, importance), grid)
