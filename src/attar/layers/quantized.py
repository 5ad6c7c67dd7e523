"""Linears and embeddings that hold codes and scales, and compute on what those stand for.

PyTorch only simulates them: every forward pass rebuilds the float weights, so they take the
bytes of their grid on disk and in memory but are no faster here than float weights.
`attar.layers.floats` rebuilds them once, where memory allows it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.core.grid import Grid
from attar.layers.swap import swappable
from attar.ops.packing import pack, packed_width, unpack
from attar.ops.rounding import (
    Codes,
    Scales,
    dequantize,
    encode,
    round_minimum,
    round_scale,
    through,
    weights_of,
)
from attar.ops.signround import nudged

_STEPS = 16.0  # codes that a zero point or minimum moves by where a gain would move by 1


class Quantized(nn.Module):
    """A table of `rows` by `width` codes with a scale for each group of a row."""

    simulated = True
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    minima: Tensor | None
    floats: Tensor | None

    def __init__(self, rows: int, width: int, grid: Grid) -> None:
        super().__init__()
        self.rows, self.width, self.grid = rows, width, grid
        self.group = grid.group_for(width)
        groups = -(-width // self.group)
        shape = (rows, packed_width(width, grid.bits))
        self.register_buffer("codes", torch.zeros(shape, dtype=torch.uint8))
        self.register_buffer("scales", torch.ones((rows, groups), dtype=torch.bfloat16))
        zeros = torch.zeros((rows, groups), dtype=torch.uint8) if grid.zero_point else None
        self.register_buffer("zeros", zeros)
        minima = torch.zeros((rows, groups), dtype=torch.bfloat16) if grid.minimum else None
        self.register_buffer("minima", minima)
        self.register_buffer("floats", None, persistent=False)

    def fill(self, result: Codes) -> Self:
        """Take these codes, scales, and zero points or minima."""
        self.codes = pack(result.codes, self.grid)
        self.scales = result.scales.to(torch.bfloat16)
        self.zeros = None if result.zeros is None else result.zeros.to(torch.uint8)
        self.minima = None if result.minima is None else result.minima.to(torch.bfloat16)
        self.floats = None
        return self

    def keep_floats(self, dtype: torch.dtype) -> None:
        """Rebuild the weights once, and keep them beside the codes until `fill` or training."""
        self.floats = self._rebuilt(dtype)

    def unpacked(self, rows: Tensor | None = None) -> Codes:
        """The codes, scales, and zero points or minima, of all rows or of these."""
        found = Codes(self.codes, self.scales, self.zeros, self.minima)
        found = found if rows is None else found.rows(rows)
        return replace(found, codes=unpack(found.codes, self.grid, self.width))

    def dequantized(self, dtype: torch.dtype, rows: Tensor | None = None) -> Tensor:
        """The weights that the codes stand for, [rows, width]."""
        if self.floats is not None and self.floats.dtype == dtype:
            return self.floats if rows is None else self.floats[rows]
        return self._rebuilt(dtype, rows)

    def _rebuilt(self, dtype: torch.dtype, rows: Tensor | None = None) -> Tensor:
        return dequantize(self.unpacked(rows), self.grid, dtype)

    @property
    def weight(self) -> Tensor:
        """The weights that the codes stand for, in float32."""
        return self.dequantized(torch.float32)

    def spec(self) -> dict[str, Any]:
        """Shape and grid."""
        return {"rows": self.rows, "width": self.width, "grid": self.grid.name}

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.width}, grid={self.grid.name}"


@swappable
class QuantizedLinear(Quantized):
    """A linear whose weights lie on a grid."""

    def __init__(self, rows: int, width: int, grid: Grid, bias: Tensor | None = None) -> None:
        super().__init__(rows, width, grid)
        self.in_features, self.out_features = width, rows
        self.bias = parameter(bias)

    def arriving(self, inputs: Tensor) -> Tensor:
        """What the weights are multiplied with: the inputs, or what is left of them on a grid."""
        return inputs

    def forward(self, inputs: Tensor) -> Tensor:
        dtype = compute_dtype(inputs)
        bias = None if self.bias is None else self.bias.to(dtype)
        return functional.linear(self.arriving(inputs).to(dtype), self.dequantized(dtype), bias)

    def free_scales(self) -> list[nn.Parameter]:
        """Let scales be trained until `settle`; the parameters that move them.

        `gain` is what a scale grows by, as a share of it. What is computed with meanwhile is
        what `settle` will leave.
        """
        self.floats = None
        self.gain = nn.Parameter(torch.zeros_like(self.scales, dtype=torch.float32))
        return [self.gain]

    def free(self) -> list[nn.Parameter]:
        """The same for scales, and zero points or minima, which `drift` moves.

        It does so in steps that let one learning rate fit both.
        """
        if self.grid.offset == "none":
            return self.free_scales()
        self.drift = nn.Parameter(torch.zeros_like(self.scales, dtype=torch.float32))
        return [*self.free_scales(), self.drift]

    def free_codes(
        self, wanted: Tensor, rank: int = 0, held: Tensor | None = None
    ) -> list[nn.Parameter]:
        """The same for codes: levels are rounded from `wanted`, [rows, width], plus a nudge.

        The nudge is `nudge`, or of a rank the product of `nudge_up` and `nudge_down`; it starts
        at zero, and stays there where `held` says so. Levels have no zero points in them.
        """
        self.wanted, self.held = wanted, held
        if not rank:
            self.nudge = nn.Parameter(torch.zeros_like(wanted))
            return [self.nudge]
        self.nudge_up = nn.Parameter(wanted.new_zeros(self.rows, rank))
        self.nudge_down = nn.Parameter(torch.randn_like(wanted[:1].expand(rank, -1)))
        return [self.nudge_up, self.nudge_down]

    def settle(self) -> None:
        """Take what training has come to, and end it."""
        with torch.no_grad():
            self.fill(self.unpacked())
        for name in ("gain", "drift", "nudge", "nudge_up", "nudge_down", "wanted", "held"):
            if hasattr(self, name):
                delattr(self, name)

    def _rebuilt(self, dtype: torch.dtype, rows: Tensor | None = None) -> Tensor:
        if not hasattr(self, "wanted"):
            return super()._rebuilt(dtype, rows)
        weight = weights_of(self._levels(), self._fitted(), self.grid, dtype)
        return weight if rows is None else weight[rows]

    def unpacked(self, rows: Tensor | None = None) -> Codes:
        if hasattr(self, "wanted"):
            found = encode(self._levels(), self._fitted(), self.grid)
            return found if rows is None else found.rows(rows)
        found, fitted = super().unpacked(rows), self._fitted(rows)
        return Codes(found.codes, fitted.scales, fitted.zeros, fitted.minima)

    def _levels(self) -> Tensor:
        """The levels as training has moved them."""
        low_rank = hasattr(self, "nudge_up")
        with torch.autocast(self.wanted.device.type, enabled=False):  # as `settle` computes it
            nudge = self.nudge_up @ self.nudge_down if low_rank else self.nudge
        nudge = nudge if self.held is None else nudge.masked_fill(self.held, 0.0)
        return nudged(self.wanted, nudge, self.grid, self.zeros)

    def _fitted(self, rows: Tensor | None = None) -> Scales:
        """Scales, zero points and minima as training has moved them, of all rows or of these."""
        kept = Codes(self.codes, self.scales, self.zeros, self.minima)
        kept = kept if rows is None else kept.rows(rows)
        scales, zeros, minima = kept.scales, kept.zeros, kept.minima
        if not hasattr(self, "gain"):
            return Scales(scales, zeros, minima)
        before = scales.float()
        scales = before * (1 + (self.gain if rows is None else self.gain[rows]))
        scales = through(scales, round_scale(scales.detach(), self.grid.powers))
        if hasattr(self, "drift"):
            steps = _STEPS * (self.drift if rows is None else self.drift[rows])
            if zeros is not None:
                zeros = zeros + steps
                zeros = through(zeros, zeros.detach().round().clamp(self.grid.low, self.grid.high))
            if minima is not None:
                minima = minima.float() + before * steps
                minima = through(minima, round_minimum(minima.detach()))
        return Scales(scales, zeros, minima)

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "bias": self.bias is not None}

    @classmethod
    def rebuild(cls, spec: dict[str, Any], model: nn.Module) -> nn.Module:
        """An empty one of the same shape and grid."""
        bias = torch.zeros(spec["rows"]) if spec["bias"] else None
        return cls(spec["rows"], spec["width"], Grid.parse(spec["grid"]), bias)


@swappable
class QuantizedEmbedding(Quantized):
    """A table of embeddings on a grid; only the rows looked up are rebuilt.

    `factor` multiplies what is looked up, for families that scale their embeddings.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        grid: Grid,
        dtype: torch.dtype = torch.float32,
        factor: float = 1.0,
    ) -> None:
        super().__init__(rows, width, grid)
        self.dtype, self.factor = dtype, factor

    def forward(self, ids: Tensor) -> Tensor:
        found = self.dequantized(self.dtype, ids.reshape(-1)).reshape(*ids.shape, self.width)
        if self.factor != 1.0:
            found = found * torch.tensor(self.factor, dtype=self.dtype)
        return found

    def spec(self) -> dict[str, Any]:
        dtype = str(self.dtype).removeprefix("torch.")
        return {**super().spec(), "dtype": dtype, "factor": self.factor}

    @classmethod
    def rebuild(cls, spec: dict[str, Any], model: nn.Module) -> nn.Module:
        """An empty one of the same shape and grid."""
        return cls(
            spec["rows"],
            spec["width"],
            Grid.parse(spec["grid"]),
            getattr(torch, spec["dtype"]),
            spec["factor"],
        )


def parameter(bias: Tensor | None) -> nn.Parameter | None:
    """The parameter itself, so that a bias which another module shares stays shared."""
    return bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias.detach())


def compute_dtype(inputs: Tensor) -> torch.dtype:
    """The dtype that inputs are multiplied in."""
    if torch.is_autocast_enabled(inputs.device.type):
        return torch.get_autocast_dtype(inputs.device.type)
    return inputs.dtype
