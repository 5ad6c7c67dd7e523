"""Masks that grow while a model is trained: settings, and what is seen of a masked weight."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from attar.core.context import Context
from attar.core.scope import Scope
from attar.models.model import Model, weight_of
from attar.ops.sparse import cubic, regrowing
from attar.techniques.prune._sparsity import Sparsity, check_ties, put, tell
from attar.train.scoped import trained
from attar.train.seen import View, seen_through
from attar.train.taught import Taught


class Ramp(Sparsity, Taught):
    """How the share of zeros rises while a teacher is followed, mixed into a step.

    Of a pattern such as 2:4 the share of the runs that have it rises.
    """

    start: float = Field(0.0, ge=0, lt=1, description="the share of zeros to start from")
    ramp: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the steps in which zeros become more; no state from before its end "
        "is kept as the best",
    )
    every: int = Field(10, ge=1, description="steps between two choices of what is zero")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        sparsity = self.wanted().sparsity
        if self.start > sparsity:
            raise ValueError(
                f"start: {self.start:g} is above the share of zeros to end with, {sparsity:g}; "
                "start lower"
            )
        return self

    def whole_at(self, steps: int) -> int:
        """The step, counted from 0, before which the last of the zeros are chosen."""
        return int(self.ramp * steps)

    def share(self, step: int, steps: int) -> float:
        """Which share of the zeros to end with there are to be at a step, counted from 0."""
        sparsity, whole = self.wanted().sparsity, self.whole_at(steps)
        done = step / whole if step < whole else 1.0
        return cubic(self.start, sparsity, done) / sparsity

    def prune(self, model: Model, scope: Scope, ctx: Context, view: type[Mask]) -> Model:
        """Train the scope, its linears seen through masks, and leave the zeros in the weights."""
        linears = model.linears(scope)
        check_ties(model, linears)
        views = {name: view(linear, self) for name, linear in linears.items()}
        with trained(model, scope), seen_through(model, views):
            self.learn(model, ctx)
        tell(ctx, [put(model, name, weight_of(linear)) for name, linear in linears.items()])
        return model


class Mask(View):
    """A weight with zeros where it is smallest; what is masked is trained on, and may come back."""

    mask: Tensor

    def __init__(self, linear: nn.Module, ramp: Ramp) -> None:
        super().__init__()
        self.ramp, self.pattern = ramp, ramp.wanted()
        self.register_buffer("mask", torch.ones_like(weight_of(linear), dtype=torch.bool))

    def seen(self, weight: Tensor) -> Tensor:
        return regrowing(weight, self.mask)

    def worth(self, weight: Tensor) -> Tensor:
        """What a weight is judged by: the higher, the longer it stays."""
        return weight.abs()

    def renew(self, weight: Tensor, step: int, steps: int) -> None:
        """Choose the zeros anew, where it is time."""
        if step % self.ramp.every == 0 or step == self.ramp.whole_at(steps):
            share = self.ramp.share(step, steps)
            self.mask.copy_(self.pattern.partly(self.worth(weight), share))

    def final(self, done: int, steps: int) -> bool:
        """Whether all zeros are there."""
        return done > self.ramp.whole_at(steps)
