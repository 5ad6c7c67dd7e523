"""Sums of outer products of a linear's inputs."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

import torch
from torch import Tensor

_TOKENS = 4096
_PANEL = 384


class Gram:
    """The sum of x xT over the tokens seen, in float32: [width, width].

    It is symmetric, so only the panels on and above its diagonal are summed.
    """

    def __init__(self, width: int) -> None:
        self._upper = torch.zeros(width, width)
        self.count = 0

    def add(self, inputs: Tensor) -> None:
        """Count these inputs in: [..., width]."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        self.count += len(rows)
        for part in rows.split(_TOKENS):
            values = part.float()
            for start in range(0, len(self._upper), _PANEL):
                panel = values[:, start : start + _PANEL]
                self._upper[start : start + _PANEL, start:].addmm_(panel.t(), values[:, start:])

    @property
    def mean(self) -> Tensor:
        """The average outer product of a token."""
        upper = self._upper.triu()
        return (upper + upper.triu(1).t()).div_(max(1, self.count))
