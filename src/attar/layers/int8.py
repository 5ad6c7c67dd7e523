"""Quantized linears whose inputs are rounded to 8 bits too, so that engines multiply integers."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from attar.core.grid import Grid
from attar.layers.quantized import QuantizedLinear
from attar.layers.swap import swappable
from attar.ops.activations import InputGrid, rounded, rounded_tokens


@swappable
class DynamicLinear(QuantizedLinear):
    """Each token's inputs are rounded on a grid of their own, found as they arrive."""

    def arriving(self, inputs: Tensor) -> Tensor:
        return rounded_tokens(inputs)


@swappable
class StaticLinear(QuantizedLinear):
    """All inputs are rounded on one grid, found beforehand."""

    input_scale: Tensor
    input_zero: Tensor

    def __init__(self, rows: int, width: int, grid: Grid, bias: Tensor | None = None) -> None:
        super().__init__(rows, width, grid, bias)
        self.register_buffer("input_scale", torch.ones((), dtype=torch.float32))
        self.register_buffer("input_zero", torch.zeros((), dtype=torch.uint8))

    def on(self, grid: InputGrid) -> Self:
        """Take this grid for the inputs."""
        self.input_scale, self.input_zero = _scalars(grid, self.codes.device)
        return self

    @property
    def input_grid(self) -> InputGrid:
        """The grid of the inputs."""
        return InputGrid(float(self.input_scale), int(self.input_zero))

    def arriving(self, inputs: Tensor) -> Tensor:
        return rounded(inputs, self.input_scale, self.input_zero.float())


@swappable
class RoundedLinear(StaticLinear):
    """Its outputs are rounded too, on a grid found beforehand: queries, or keys."""

    output_scale: Tensor
    output_zero: Tensor

    def __init__(self, rows: int, width: int, grid: Grid, bias: Tensor | None = None) -> None:
        super().__init__(rows, width, grid, bias)
        self.register_buffer("output_scale", torch.ones((), dtype=torch.float32))
        self.register_buffer("output_zero", torch.zeros((), dtype=torch.uint8))

    def onto(self, grid: InputGrid) -> Self:
        """Take this grid for the outputs."""
        self.output_scale, self.output_zero = _scalars(grid, self.codes.device)
        return self

    @property
    def output_grid(self) -> InputGrid:
        """The grid of the outputs."""
        return InputGrid(float(self.output_scale), int(self.output_zero))

    def forward(self, inputs: Tensor) -> Tensor:
        return rounded(super().forward(inputs), self.output_scale, self.output_zero.float())


def _scalars(grid: InputGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """A grid's scale, and its code for zero."""
    scale = torch.tensor(grid.scale, dtype=torch.float32, device=device)
    return scale, torch.tensor(grid.zero, dtype=torch.uint8, device=device)
