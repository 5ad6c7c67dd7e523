"""A linear of another shape than its model's config says."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from attar.layers.swap import dtype_of, swappable


@swappable
class Resized(nn.Linear):
    """An ordinary linear that brings its shape with it, where blocks differ in size."""

    def fill(self, weight: Tensor, bias: Tensor | None) -> Self:
        """Take this weight, [rows, width], and this bias."""
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        return self

    def spec(self) -> dict[str, Any]:
        """Shape, and whether there is a bias."""
        return {
            "rows": self.out_features,
            "width": self.in_features,
            "bias": self.bias is not None,
        }

    @classmethod
    def rebuild(cls, spec: dict[str, Any], model: nn.Module) -> nn.Module:
        """An empty one of the same shape, in the dtype of the model's other weights."""
        return cls(spec["width"], spec["rows"], spec["bias"], dtype=dtype_of(model))
