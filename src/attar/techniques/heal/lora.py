"""Distill an adapter of low rank from the original, and merge it back into the weights."""

from __future__ import annotations

from contextlib import ExitStack
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.core.context import Context
from attar.core.keys import seed_of
from attar.core.scope import Scope
from attar.core.step import Step
from attar.layers import QuantizedLinear
from attar.models.masks import is_masked
from attar.models.model import Model, weight_of
from attar.ops.rounding import decode
from attar.train.scoped import frozen
from attar.train.seen import View, seen_through
from attar.train.taught import Taught


class Lora(Taught, Step, kind="heal/lora"):
    """LoRA (Hu et al. 2021, arXiv 2106.09685) under a teacher; nothing of it is left at the end.

    Codes of a quantized linear are rounded from what they are plus the adapter in every forward
    pass, straight through (LR-QAT, Bondarenko et al. 2024, arXiv 2406.06385), so merging loses
    nothing. Scales, and the zeros of a pruned linear, stay as they are. Optimizer states are
    those of the adapter alone.
    """

    needs = frozenset()
    whole = True
    training_bytes = 8  # the weights, and those of one forward pass made anew
    promises = frozenset({"changed"})

    rank: int = Field(16, ge=1, description="the rank of each linear's adapter")
    learning_rate: float = Field(1e-3, gt=0, description="the highest learning rate")
    weight_decay: float = Field(0.0, ge=0, description="how fast adapters return to nothing")
    batch: int = Field(4, ge=1, description="sequences or rows at a time, on each process")
    scope: Scope = Field(Scope.linears(), description="the linears to adapt")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the adapters, and merge them."""
        linears = model.linears(self.scope)
        with torch.random.fork_rng(), frozen(model.module), ExitStack() as stack:
            torch.manual_seed(seed_of(ctx.seed, "adapters"))
            views = {
                name: _Adapted(linear, self.rank)
                for name, linear in linears.items()
                if not isinstance(linear, QuantizedLinear)
            }
            for linear in linears.values():
                if isinstance(linear, QuantizedLinear):
                    stack.callback(linear.settle)
                    _adapt(linear, self.rank)
            with seen_through(model, views):
                self.learn(model, ctx)
        numbers = sum(self.rank * sum(weight_of(linear).shape) for linear in linears.values())
        ctx.note("trained", f"{numbers:,} numbers".replace(",", " "))
        return model


class _Adapted(View):
    """A weight plus an adapter, which is measured by the weight's own size."""

    def __init__(self, linear: nn.Module, rank: int) -> None:
        super().__init__()
        weight = weight_of(linear).detach().float()
        self.register_buffer("size", weight.abs().mean(), persistent=False)
        self.keep = weight != 0 if is_masked(linear) else None
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.down = nn.Parameter(torch.randn_like(weight[:1].expand(rank, -1)))

    def seen(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # as it is merged
            adapted = weight + cast("Tensor", self.size) * (self.up @ self.down)
        return adapted if self.keep is None else adapted * self.keep


def _adapt(linear: QuantizedLinear, rank: int) -> None:
    """Free the codes of a quantized linear, but for the zeros of a pruned one."""
    held = weight_of(linear) == 0 if is_masked(linear) else None
    linear.free_codes(decode(linear.unpacked(), linear.grid), rank, held)
