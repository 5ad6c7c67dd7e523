"""Train scales, zero points, norms and biases alone, end to end, toward the original's answers."""

from __future__ import annotations

from pydantic import Field

from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import Step
from attar.core.traits import QUANTIZED
from attar.models.model import Model
from attar.train.scoped import freed
from attar.train.taught import Taught


class Scales(Taught, Step, kind="heal/scales"):
    """What is left to train once the codes are fixed (EfficientQAT, arXiv 2407.11062, 3.3).

    Every code stays as it is, so the result takes the bytes that it took before.
    """

    needs = frozenset({QUANTIZED})
    whole = True
    training_bytes = 8  # the weights, and what codes stand for
    promises = frozenset({"changed"})

    batch: int = Field(4, ge=1, description="sequences or rows at a time, on each process")
    learning_rate: float = Field(1e-3, gt=0, description="the highest learning rate")
    weight_decay: float = Field(0.0, ge=0, description="how fast scales return to where they were")
    scope: Scope = Field(
        Scope(patterns=("linears", "norm")), description="the quantized linears, and norms"
    )

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train, and put the best scales back onto their grid."""
        with freed(model.module, model.select(self.scope)) as trained:
            self.learn(model, ctx)
        count = sum(p.numel() for p in (*trained.scales, *trained.weights))
        ctx.note("trained", f"{count:,} numbers".replace(",", " "))
        return model
