"""A linear as the product of two smaller ones."""

from __future__ import annotations

from typing import Any, Self, cast

from torch import Tensor, nn

from attar.layers.swap import dtype_of, swappable


@swappable
class LowRank(nn.Module):
    """y = up(down(x)) + bias: [rows, rank] times [rank, width] in place of [rows, width].

    Fewer weights, and fewer multiplications, than one linear where rank is below
    rows * width / (rows + width).
    """

    def __init__(self, rows: int, width: int, rank: int, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = width, rows, rank
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, rows, bias=bias)

    def fill(self, up: Tensor, down: Tensor, bias: nn.Parameter | None) -> Self:
        """Take these factors, [rows, rank] and [rank, width], and the bias itself."""
        self.up.weight, self.down.weight = nn.Parameter(up), nn.Parameter(down)
        self.up.bias = bias  # pyright: ignore[reportAttributeAccessIssue]
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        return self.up(self.down(inputs))

    @property
    def weight(self) -> Tensor:
        """The product, [rows, width]; factors on a grid count as what they stand for."""
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias, if there is one."""
        return self.up.bias

    def spec(self) -> dict[str, Any]:
        """Shape, rank, and whether there is a bias."""
        return {
            "rows": self.out_features,
            "width": self.in_features,
            "rank": self.rank,
            "bias": self.bias is not None,
        }

    @classmethod
    def rebuild(cls, spec: dict[str, Any], model: nn.Module) -> nn.Module:
        """An empty one of the same shape, in the dtype of the model's other weights."""
        return cls(**spec).to(dtype_of(model))


@swappable
class LowRankResidual(LowRank):
    """y = up(down(x)) + rest(x) + bias: what the two thin linears leave is a third one.

    `rest` is meant to be rounded coarsely, and its loss to be small because the strongest
    directions are in the factors.
    """

    def __init__(self, rows: int, width: int, rank: int, bias: bool = False) -> None:
        super().__init__(rows, width, rank, bias)
        self.rest: nn.Module = nn.Linear(width, rows, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + self.rest(inputs)

    @property
    def weight(self) -> Tensor:
        return super().weight + cast("Tensor", self.rest.weight)
