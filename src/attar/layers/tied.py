"""Output heads that are tied to a quantized embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.layers.quantized import QuantizedEmbedding, compute_dtype, parameter
from attar.layers.swap import swappable


@swappable
class TiedHead(nn.Module):
    """An output head that multiplies with the table of a quantized embedding it is tied to."""

    simulated = True

    def __init__(
        self, table: QuantizedEmbedding, table_name: str, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.__dict__["table"] = table  # a reference, not a child: its codes are saved once
        self.table_name = table_name
        self.bias = parameter(bias)

    def forward(self, inputs: Tensor) -> Tensor:
        table: QuantizedEmbedding = self.__dict__["table"]
        dtype = compute_dtype(inputs)
        bias = None if self.bias is None else self.bias.to(dtype)
        return functional.linear(inputs.to(dtype), table.dequantized(dtype), bias)

    @property
    def weight(self) -> Tensor:
        """The weights that the table's codes stand for, in float32."""
        return self.__dict__["table"].weight

    def spec(self) -> dict[str, Any]:
        """The name of the table, and whether there is a bias."""
        rows = None if self.bias is None else len(self.bias)
        return {"table_name": self.table_name, "bias": rows}

    @classmethod
    def rebuild(cls, spec: dict[str, Any], model: nn.Module) -> nn.Module:
        """A head on the table that is already in `model`."""
        table = model.get_submodule(spec["table_name"])
        if not isinstance(table, QuantizedEmbedding):
            raise TypeError(f"{spec['table_name']} is no quantized embedding")
        bias = None if spec["bias"] is None else torch.zeros(spec["bias"])
        return cls(table, spec["table_name"], bias)
