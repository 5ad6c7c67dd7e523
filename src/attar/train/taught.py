"""Settings of steps that train toward a teacher while they change what is seen of the weights."""

from __future__ import annotations

from pydantic import Field

from attar.core.context import Context
from attar.core.step import DataRef, ModelRef
from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.train.fit import fit
from attar.train.losses import Objective, forward, judge
from attar.train.rows import held_out_of, labeled, stream_of
from attar.train.schedule import Training
from attar.train.teacher import ready


class Taught(Training):
    """A teacher and how much it counts, mixed into a step as fields of its own."""

    teacher: ModelRef | None = Field(
        "original",
        description="whom to learn from: the original, an earlier stage, a path, or none for the "
        "task's own loss alone",
    )
    weight: float = Field(
        1.0,
        ge=0,
        le=1,
        description="weight of KL(teacher || student); the task's own loss has the rest",
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="what both sides' logits are divided by in the divergence; 1 for language "
        "models and 2 for classifiers by default",
    )
    learning_rate: float = Field(1e-4, gt=0, description="the highest learning rate")
    data: DataRef = Field("train", description="the dataset to learn on")
    held_out: DataRef | None = Field(
        "dev", description="the dataset that tells which state is best; none: the last is kept"
    )

    def learn(self, model: Model, ctx: Context) -> None:
        """Train what wants a gradient, and leave the best state in it."""
        alone = self.teacher is None or self.weight == 0
        dataset = labeled(self.data, model, ctx) if alone else ctx.data(self.data)
        stream = stream_of(dataset, model, self, ctx)
        teacher = None
        if self.teacher is not None and not alone:
            teacher = ready(ctx.model(self.teacher), model, self.length, ctx)
        mix = self.mix(model)
        objective = Objective(model, teacher, lambda _: mix)
        held = held_out_of(self.held_out, model, self, ctx)
        fit(model, objective, stream, self, ctx, judge(objective, held, mix) if held else None)

    def mix(self, model: Model) -> Mix:
        """The loss of a position."""
        weight = self.weight if self.teacher is not None else 0.0
        return forward(model, weight, self.temperature)
