"""Set ever more of the smallest weights to zero while training; what was zero may come back."""

from __future__ import annotations

from pydantic import Field

from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import Step
from attar.core.traits import FLOAT, MASKED
from attar.models.model import Model
from attar.techniques.prune._ramp import Mask, Ramp


class Gradual(Ramp, Step, kind="prune/gradual"):
    """Gradual magnitude pruning (Zhu and Gupta 2017, arXiv 1710.01878) under a teacher.

    Within each linear the smallest weights are masked, their share rising by a cubic schedule.
    Masked weights go on being trained as if they were there, and are unmasked where they have
    become large (Lin et al. 2020, arXiv 2006.07253); masks are chosen anew to the end.
    """

    needs = frozenset({FLOAT})
    adds = frozenset({MASKED})
    whole = True
    promises = frozenset({"changed"})

    scope: Scope = Field(
        Scope(patterns=("linears", "norm")),
        description="the linears to prune, and what else is trained",
    )

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train under masks, and leave the zeros in the weights."""
        return self.prune(model, self.scope, ctx, Mask)
