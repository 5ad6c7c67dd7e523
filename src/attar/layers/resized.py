"""A linear of another shape than its model's config says."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from attar.layers.swap import swappable


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
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        return cls(spec["width"], spec["rows"], spec["bias"], dtype=dtype)
