"""Set weights to zero that training moves toward zero, whatever their size (movement pruning)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import ModelRef, Step
from attar.core.traits import FLOAT, MASKED
from attar.models.model import Model
from attar.ops.sparse import scored
from attar.techniques.prune._ramp import Mask, Ramp


class Movement(Ramp, Step, kind="prune/movement"):
    """Movement pruning while fine-tuning (Sanh et al. 2020, arXiv 2005.07683, hard).

    Every weight has a score that is trained with it, from zero, and the highest of each linear
    stay; their share falls by a cubic schedule. Only ranks count, so scores need no learning
    rate of their own. They take as much memory as the weights, with moments of their own: about
    twice what prune/gradual takes.
    """

    needs = frozenset({FLOAT})
    adds = frozenset({MASKED})
    whole = True
    promises = frozenset({"changed"})

    teacher: ModelRef | None = Field(
        None,
        description="whom to learn from too: the original, an earlier stage, a path, or none for "
        "the task's own loss alone",
    )
    weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of KL(teacher || student), where there is a teacher; the task's own "
        "loss has the rest",
    )
    scope: Scope = Field(
        Scope(patterns=("linears", "norm")),
        description="the linears to prune, and what else is trained",
    )

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train weights and scores, and leave the zeros in the weights."""
        return self.prune(model, self.scope, ctx, _Scored)


class _Scored(Mask):
    """A weight with zeros where its scores are lowest."""

    def __init__(self, weight: Tensor, ramp: Ramp) -> None:
        super().__init__(weight, ramp)
        self.scores = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))

    def seen(self, weight: Tensor) -> Tensor:
        return scored(weight, self.scores, self.mask)

    def worth(self, weight: Tensor) -> Tensor:
        return self.scores
