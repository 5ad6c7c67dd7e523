"""Statistics of a linear's inputs, summed over tokens, and the inverse of their gram."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

Device = torch.device | str
_TOKENS = 2048
_PANEL = 192
_DAMPING = (0.01, 0.03, 0.1, 0.3, 1.0)


class Gram:
    """The sum of x xT over the tokens seen, in float32: [width, width].

    It is symmetric, so only the panels on and above its diagonal are summed.
    """

    def __init__(self, width: int, device: Device = "cpu") -> None:
        self._upper = torch.zeros(width, width, device=device)
        self._mean: Tensor | None = None
        self.count = 0

    def add(self, inputs: Tensor) -> None:
        """Count these inputs in: [..., width]."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        self.count += len(rows)
        for part in rows.split(_TOKENS):
            values = part.float()
            with _products_of(part.dtype):
                for start in range(0, len(self._upper), _PANEL):
                    panel = values[:, start : start + _PANEL]
                    self._upper[start : start + _PANEL, start:].addmm_(panel.t(), values[:, start:])

    @property
    def mean(self) -> Tensor:
        """The average outer product of a token; it takes the place of the sum, which ends there."""
        if self._mean is None:
            self._mean = self._upper.div_(max(1, self.count))
            for start in range(0, len(self._mean), _PANEL):
                stop = start + _PANEL
                square = self._mean[start:stop, start:stop]
                square.copy_(square.triu() + square.triu(1).t())
                self._mean[stop:, start:stop] = self._mean[start:stop, stop:].t()
        return self._mean


class Energy:
    """The sum of squares of every input over the tokens seen, in float32: [width]."""

    def __init__(self, width: int, device: Device = "cpu") -> None:
        self._sum = torch.zeros(width, device=device)
        self.count = 0

    def add(self, inputs: Tensor) -> None:
        """Count these inputs in: [..., width]."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        self.count += len(rows)
        for part in rows.split(_TOKENS):
            self._sum += part.float().square().sum(0)

    @property
    def mean(self) -> Tensor:
        """The average square of each input."""
        return self._sum / max(1, self.count)


@contextmanager
def _products_of(dtype: torch.dtype) -> Generator[None]:
    """Let a processor multiply float32 as bfloat16 where that is what the values were.

    Their products fit float32, in which they are summed, so nothing is lost.
    """
    matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)  # of PyTorch 2.9 and later
    if matmul is None or dtype != torch.bfloat16:
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def inverse_factor(gram: Tensor, order: Tensor) -> Tensor:
    """R, upper, with RT R the inverse of the gram whose rows and columns are in this order.

    The diagonal is damped by 1 % of its mean, or more where that is not definite yet; ValueError
    where no more than its mean makes it so, which no sum of squares is. The gram turned end to
    end is L LT; turned back, L is upper, and its inverse is R.
    """
    back = order.flip(0)
    turned = gram[back[:, None], back]
    energy = turned.diagonal().clone()
    for damping in _DAMPING:
        turned.diagonal().copy_(energy + damping * energy.mean())
        lower, info = cast("tuple[Tensor, Tensor]", torch.linalg.cholesky_ex(turned))
        if info.item() == 0:
            del turned  # one of four matrices of this size
            upper = lower.flip(0, 1)
            del lower
            unit = torch.eye(len(gram), device=gram.device)
            return torch.linalg.solve_triangular(upper, unit, upper=True, out=unit)
    raise ValueError("the gram is not positive definite, nor with its mean on its diagonal")


def damped(gram: Tensor, share: float) -> Tensor:
    """The gram with a share of its mean energy added to its diagonal.

    What is solved under it stays the nearer to the weights, and hangs the less on which inputs
    happened to go together.
    """
    raised = gram.clone()
    raised.diagonal().add_(share * gram.diagonal().mean())
    return raised


def without_dead(gram: Tensor) -> Tensor:
    """The gram with the mean energy of the others for inputs that were never active.

    Itself where there are none.
    """
    energy = gram.diagonal()
    dead = energy <= 0
    if not dead.any():
        return gram
    alive, gram = energy[~dead], gram.clone()
    gram.diagonal()[dead] = alive.mean() if len(alive) else 1.0
    return gram


def lost_share(weight: Tensor, new: Tensor, gram: Tensor) -> float:
    """The squared error of a linear's outputs, relative to the outputs: tr(E G ET) / tr(W G WT)."""
    weight, gram = weight.detach().float(), gram.float()
    rest = weight - new.float()
    above, below = ((rest @ gram) * rest).sum(), ((weight @ gram) * weight).sum()
    return float(above / below.clamp_min(1e-30))
