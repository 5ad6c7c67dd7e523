"""Set weights to zero that training moves toward zero, whatever their size (movement pruning)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import ModelRef, Step
from attar.core.traits import FLOAT, MASKED
from attar.models.masks import is_masked
from attar.models.model import Model, weight_of
from attar.ops.sparse import scored
from attar.techniques.prune._ramp import Mask, Ramp

_FIRST = 1e-6  # a first score, of the largest weight: less than training moves one in a step


class Movement(Ramp, Step, kind="prune/movement"):
    """Movement pruning while fine-tuning (Sanh et al. 2020, arXiv 2005.07683, hard).

    Every weight has a score that is trained with it, from next to zero, where larger weights come
    first, and the highest of each linear stay; their share falls by a cubic schedule. Only ranks
    count, so scores need no learning rate of their own. They take as much memory as the weights,
    with moments of their own: about twice what prune/gradual takes.
    """

    needs = frozenset({FLOAT})
    adds = frozenset({MASKED})
    whole = True
    training_bytes = 32  # weights, and as many scores
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

    def __init__(self, linear: nn.Module, ramp: Ramp) -> None:
        super().__init__(linear, ramp)
        sizes = weight_of(linear).detach().float().abs()
        scores = _FIRST * sizes / sizes.max().clamp_min(1e-30)
        if is_masked(linear):  # zeros that are held move nowhere, and rank below all that do
            scores[sizes == 0] = torch.finfo(torch.float32).min
        self.scores = nn.Parameter(scores)

    def seen(self, weight: Tensor) -> Tensor:
        return scored(weight, self.scores, self.mask)

    def worth(self, weight: Tensor) -> Tensor:
        return self.scores
