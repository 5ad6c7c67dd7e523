"""Rounding what a linear is given to 8 bits, token by token or on one range found beforehand."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SAMPLED = 8192  # numbers of each batch that the range is fitted to
_SHRINK = tuple(1.0 - 0.02 * step for step in range(36))


@dataclass(frozen=True)
class InputGrid:
    """256 numbers, `scale` apart, the one of code `zero` being 0: codes run from 0 to 255."""

    scale: float
    zero: int


def rounded_tokens(inputs: Tensor) -> Tensor:
    """Inputs [..., width] at 8 bits: codes from -127 to 127, a scale for each token.

    The gradient is that of what was not rounded (straight through).
    """
    exact = inputs.float()
    scale = exact.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return _through(inputs, (exact / scale).round() * scale)


def rounded(inputs: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Inputs on an InputGrid: what lies outside of it becomes its nearest end."""
    codes = (inputs.float() / scale + zero).round().clamp(0, 255)
    return _through(inputs, (codes - zero) * scale)


class Range:
    """Where a linear's inputs lie: their ends, and an even sample of each batch."""

    def __init__(self, width: int) -> None:
        self.low, self.high, self.count = 0.0, 0.0, 0
        self._samples: list[Tensor] = []

    def add(self, inputs: Tensor) -> None:
        """Count these inputs in: [..., width]."""
        flat = inputs.detach().reshape(-1)
        low, high = flat.aminmax()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        self.count += flat.numel() // inputs.shape[-1]
        self._samples.append(flat[:: max(1, flat.numel() // _SAMPLED)].float())

    def fit(self) -> InputGrid:
        """The grid that leaves the least squared error on the sample, its ends drawn in or not."""
        values = torch.cat(self._samples)
        best, least = InputGrid(1.0, 0), float("inf")
        for low in _SHRINK:
            for high in (low, 1.0) if low < 1 else (1.0,):
                grid = _spanning(self.low * low, self.high * high)
                scale, zero = torch.tensor(grid.scale), torch.tensor(float(grid.zero))
                error = float((rounded(values, scale, zero) - values).square().sum())
                if error < least:
                    best, least = grid, error
        return best


class Peaks:
    """The largest size that every input had over the tokens seen: [width]."""

    def __init__(self, width: int) -> None:
        self.found = torch.zeros(width)

    def add(self, inputs: Tensor) -> None:
        """Count these inputs in: [..., width]."""
        peaks = inputs.detach().abs().reshape(-1, inputs.shape[-1]).amax(0).float()
        self.found = torch.maximum(self.found, peaks)


def smoothing(inputs: Tensor, weight: Tensor, migration: float) -> Tensor:
    """What to divide each input by, and multiply its weights by, for both to be easy to round.

    max|x|^a / max|w|^(1 - a), a being the migration strength (SmoothQuant, Xiao et al. 2023,
    arXiv 2211.10438, equation 4). inputs: [width], the peaks; weight: [rows, width].
    """
    peaks = weight.detach().float().abs().amax(0).clamp_min(1e-5)
    scales = inputs.clamp_min(1e-5) ** migration / peaks ** (1 - migration)
    return scales.clamp_min(1e-5)


def _spanning(low: float, high: float) -> InputGrid:
    scale = max((high - low) / 255, 1e-12)
    return InputGrid(scale, round(min(max(-low / scale, 0), 255)))


def _through(inputs: Tensor, rounded: Tensor) -> Tensor:
    return inputs + (rounded.to(inputs.dtype) - inputs).detach()
