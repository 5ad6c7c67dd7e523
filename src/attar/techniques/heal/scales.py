"""Train scales, zero points, norms and biases alone, end to end, toward the original's answers."""

from __future__ import annotations

from pydantic import Field

from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import DataRef, ModelRef, Step
from attar.core.traits import QUANTIZED
from attar.models.model import Model
from attar.ops.divergence import Mix
from attar.train.fit import fit
from attar.train.losses import Objective, judge
from attar.train.rows import held_out_of, stream_of
from attar.train.schedule import Training
from attar.train.scoped import freed
from attar.train.teacher import ready


class Scales(Training, Step, kind="heal/scales"):
    """What is left to train once the codes are fixed (EfficientQAT, arXiv 2407.11062, 3.3).

    The loss is KL(teacher || student). Every code stays as it is, so the result takes the
    bytes that it took before.
    """

    needs = frozenset({QUANTIZED})
    whole = True
    promises = frozenset({"changed"})

    teacher: ModelRef = Field(
        "original", description="whom to follow: the original, an earlier stage, or a path"
    )
    data: DataRef = Field("train", description="the dataset to train on; it needs no labels")
    held_out: DataRef | None = Field(
        "dev", description="the dataset that tells which state is best; none: the last is kept"
    )
    batch: int = Field(4, ge=1, description="sequences or rows at a time, on each process")
    learning_rate: float = Field(1e-3, gt=0, description="the highest learning rate")
    weight_decay: float = Field(0.0, ge=0, description="how fast scales return to where they were")
    scope: Scope = Field(
        Scope(patterns=("linears", "norm")), description="the quantized linears, and norms"
    )

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train, and put the best scales back onto their grid."""
        mix = Mix(weight=1.0, task_weight=0.0)
        stream = stream_of(ctx.data(self.data), model, self, ctx)
        teacher = ready(ctx.model(self.teacher), model, ctx.device, ctx.precision)
        objective = Objective(model, teacher, lambda _: mix)
        held = held_out_of(self.held_out, model, self, ctx)
        evaluate = judge(objective, held, mix) if held else None
        with freed(model.module, model.select(self.scope)) as trained:
            fit(model, objective, stream, self, ctx, evaluate)
        count = sum(p.numel() for p in (*trained.scales, *trained.weights))
        ctx.note("trained", f"{count:,} numbers".replace(",", " "))
        return model
