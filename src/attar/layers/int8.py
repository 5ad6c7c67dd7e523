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
    """Each token's inputs are rounded on a scale of their own, found as they arrive."""

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
        self.input_scale = torch.tensor(grid.scale, dtype=torch.float32, device=self.codes.device)
        self.input_zero = torch.tensor(grid.zero, dtype=torch.uint8, device=self.codes.device)
        return self

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
        self.output_scale = torch.tensor(grid.scale, dtype=torch.float32, device=self.codes.device)
        self.output_zero = torch.tensor(grid.zero, dtype=torch.uint8, device=self.codes.device)
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        return rounded(super().forward(inputs), self.output_scale, self.output_zero.float())
