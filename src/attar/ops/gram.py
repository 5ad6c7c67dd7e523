"""Sums of outer products of a linear's inputs."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

import torch
from torch import Tensor

_TOKENS = 4096


class Gram:
    """The sum of x xT over the tokens seen, in float32: [width, width]."""

    def __init__(self, width: int) -> None:
        self.matrix = torch.zeros(width, width)
        self.count = 0

    def add(self, inputs: Tensor) -> None:
        """Count these inputs in: [..., width]."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        self.count += len(rows)
        for part in rows.split(_TOKENS):
            values = part.float()
            self.matrix.addmm_(values.t(), values)

    @property
    def mean(self) -> Tensor:
        """The average outer product of a token."""
        return self.matrix / max(1, self.count)
