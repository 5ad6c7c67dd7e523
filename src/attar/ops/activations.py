"""Rounding what a linear is given to 8 bits, token by token or on one range found beforehand."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attar.core.grid import Grid
from attar.ops.gram import Gram
from attar.ops.levels import snap
from attar.ops.rounding import round_scale, through

_NUMBERS = 1 << 16  # of bfloat16: a grid of 256 numbers is far coarser
_SHRINK = tuple(1.0 - 0.02 * step for step in range(36))
_KEPT = 1 << 25  # numbers of a linear's inputs
_THINNED = 3  # kept is one of so many: no power of two, as lengths of sequences are
_AT_ONCE = 1 << 22  # numbers that are rounded at a time
Device = torch.device | str


@dataclass(frozen=True)
class InputGrid:
    """256 numbers, `scale` apart, the one of code `zero` being 0: codes run from 0 to 255."""

    scale: float
    zero: int


def rounded_tokens(inputs: Tensor) -> Tensor:
    """Inputs [..., width] at 8 bits, for each token on the grid that spans its own and zero.

    The gradient is that of what was not rounded (straight through).
    """
    low, high = inputs.float().aminmax(dim=-1, keepdim=True)
    low = low.clamp_max(0)
    scale = ((high.clamp_min(0) - low) / 255).clamp_min(1e-12)
    return rounded(inputs, scale, (-low / scale).round())


def rounded(inputs: Tensor, scale: Tensor | float, zero: Tensor | float) -> Tensor:
    """Inputs [..., width] on an InputGrid, whose scale and zero point are numbers or scalars.

    What lies outside of it becomes its nearest end, and gradients pass straight through.
    """
    codes = (inputs.float() / scale + zero).round().clamp(0, 255)
    return through(inputs, (codes - zero) * scale)


class Range:
    """Where numbers lie, a linear's inputs say: how many there are of every bfloat16 number."""

    def __init__(self, width: int = 1, device: Device = "cpu") -> None:
        self._counts = torch.zeros(_NUMBERS, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, inputs: Tensor, energy: Tensor | None = None) -> None:
        """Count these inputs in, [..., width], each as its `energy` [width] or all alike."""
        bits = inputs.detach().bfloat16().reshape(-1).view(torch.int16).int() & (_NUMBERS - 1)
        weights = None
        if energy is not None:  # summed on the processor, where the order is always the same
            bits, weights = bits.cpu(), energy.double().cpu().expand(inputs.shape).reshape(-1)
        self._counts += bits.bincount(weights, _NUMBERS).to(self._counts.device)
        self.count += inputs.numel() // inputs.shape[-1]

    def fit(self, power: float = 2.0) -> InputGrid:
        """The grid that leaves the least error to this power, its ends drawn in or not."""
        values, counts = self._seen()
        ends = min(0.0, float(values.min())), max(0.0, float(values.max()))
        best, least = InputGrid(1.0, 0), float("inf")
        for low, high in (pair for s in _SHRINK for pair in ((s, s), (s, 1.0), (1.0, s))):
            grid = _spanning(ends[0] * low, ends[1] * high)
            missed = (rounded(values, grid.scale, grid.zero) - values).double().abs() ** power
            error = float((missed * counts).sum())
            if error < least:
                best, least = grid, error
        return best

    def scale(self, grid: Grid) -> Tensor:
        """The scale, one for all, of least squared error on a grid without an offset: []."""
        values, counts = self._seen()
        peak = values.abs().max() / grid.ends[1]
        best, least = round_scale(peak), float("inf")
        for shrink in _SHRINK:
            scale = round_scale(peak * shrink, grid.powers)
            squares = (snap(values / scale, grid) * scale - values).double().square()
            error = float((squares * counts).sum())
            if error < least:
                best, least = scale, error
        return best

    def numbers(self) -> Tensor:
        """The different numbers that there were."""
        return self._seen()[0]

    def _seen(self) -> tuple[Tensor, Tensor]:
        """The same, and how many of each."""
        there = self._counts.nonzero().squeeze(-1)
        values = there.to(torch.int16).view(torch.bfloat16).float()
        return values, self._counts[there]


class Inputs:
    """What a linear is given: its mean, its gram, and of its tokens as many as fit, evenly spread.

    They are the very tensors that wait for the linear where all of them fit.
    """

    def __init__(self, width: int, device: Device = "cpu") -> None:
        self.gram, self._parts, self._stride = Gram(width, device), list[Tensor](), 1
        self._sum = torch.zeros(width, dtype=torch.float64, device=device)
        self._most = max(1, _KEPT // width)

    @property
    def count(self) -> int:
        """How many tokens there were."""
        return self.gram.count

    def add(self, inputs: Tensor) -> None:
        """Count these inputs in: [..., width]."""
        rows, before = inputs.detach().reshape(-1, inputs.shape[-1]), self.count
        self.gram.add(rows)
        self._sum += rows.sum(0, dtype=torch.float64).to(self._sum.device)
        self._parts.append(self._thinned(rows, -before % self._stride))
        while sum(len(part) for part in self._parts) > self._most:
            self._stride *= _THINNED
            self._parts = [torch.cat(self._parts)[::_THINNED].clone()]

    def _thinned(self, rows: Tensor, start: int) -> Tensor:
        return rows if self._stride == 1 else rows[start :: self._stride].clone()

    def fit(self, energy: Tensor, power: float = 2.0) -> InputGrid:
        """The grid of least error to this power, each times the root of its `energy` [width].

        With the energy of an input's weights, squares are the error of a linear's outputs, as far
        as errors of different inputs have nothing to do with each other. Higher powers cut off
        less.
        """
        if not energy.any():  # weights that are all zero
            energy = torch.ones_like(energy)
        weight = (energy / energy.mean().clamp_min(1e-30)) ** (power / 2)
        found = Range()
        for part in self._some():
            found.add(part, weight)
        return found.fit(power)

    def means(self, grid: InputGrid) -> tuple[Tensor, Tensor]:
        """The mean of every input, before it is rounded and after: [width] each.

        What rounding adds is the mean over the tokens that are kept.
        """
        exact, added = self._sum / max(1, self.count), torch.zeros_like(self._sum)
        for part in self._some():
            inputs = part.float()
            missed = rounded(inputs, grid.scale, grid.zero) - inputs
            added += missed.sum(0, dtype=torch.float64).to(added.device)
        kept = sum(len(part) for part in self._parts)
        return exact.float(), (exact + added / kept).float()

    def _some(self) -> Iterator[Tensor]:
        rows = max(1, _AT_ONCE // len(self._sum))
        return (some for part in self._parts for some in part.split(rows))


class Peaks:
    """The largest size that every input had over the tokens seen: [width]."""

    def __init__(self, width: int, device: Device = "cpu") -> None:
        self.found, self.count = torch.zeros(width, device=device), 0

    def add(self, inputs: Tensor) -> None:
        """Count these inputs in: [..., width]."""
        self.count += inputs.numel() // inputs.shape[-1]
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
