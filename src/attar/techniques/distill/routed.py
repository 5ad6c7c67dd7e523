"""Learn several tasks at once, each from a teacher of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, cast

from pydantic import Field, model_validator

from attar.core.context import Context
from attar.core.step import DataRef, ModelRef, Step
from attar.core.traits import FLOAT
from attar.data.batches import Batch
from attar.data.turns import TurnBatch, Turns
from attar.models.model import Model
from attar.train.fit import fit
from attar.train.losses import Loss, Objective, forward, judge
from attar.train.rows import held_out_of, stream_of
from attar.train.schedule import Training
from attar.train.scoped import trained
from attar.train.teacher import ready_by_name


class Routed(Training, Step, kind="distill/routed"):
    """One student of several teachers, of which each teaches on its own dataset alone.

    Batches are of one dataset each, in a random order, so that one teacher is asked at a time. The
    loss is weight x KL(its teacher || student) + (1 - weight) x the task's own loss.
    """

    needs = frozenset({FLOAT})
    whole = True
    shares = True
    promises = frozenset({"changed"})

    teachers: tuple[ModelRef, ...] = Field(
        min_length=2,
        description="whom to learn from, one for each dataset: earlier stages, paths, or the "
        "original",
    )
    data: tuple[DataRef, ...] = Field(
        min_length=2, description="what each of the teachers teaches on, in the same order"
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="what all logits are divided by in the divergence; 1 for language models and "
        "2 for classifiers by default",
    )
    weight: float = Field(
        1.0, ge=0, le=1, description="weight of the divergence; the task's own loss has the rest"
    )
    held_out: tuple[DataRef, ...] = Field(
        (),
        description="a dataset for each of the teachers, which tell which state is best; none: the "
        "last is kept",
    )

    @model_validator(mode="after")
    def _one_for_each(self) -> Self:
        for name in ("data", "held_out"):
            count, teachers = len(getattr(self, name)), len(self.teachers)
            if count != teachers and not (name == "held_out" and not count):
                raise ValueError(f"`{name}` names {count} datasets for {teachers} teachers")
        return self

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the student, and leave the best state in it."""
        streams = [stream_of(ctx.data(name), model, self, ctx) for name in self.data]
        mix = forward(model, self.weight, self.temperature)
        objectives = [
            Objective(model, ready_by_name(name, model, ctx), lambda _: mix)
            for name in self.teachers
        ]
        scores = [
            judge(objective, held_out_of(name, model, self, ctx), mix)
            for objective, name in zip(objectives, self.held_out, strict=False)
        ]

        def loss(batch: Batch, progress: float) -> Loss:
            return objectives[cast("TurnBatch", batch).source](batch, progress)

        with trained(model, self.scope):
            fit(model, loss, Turns(streams, ctx.seed), self, ctx, _mean(scores) if scores else None)
        return model


def _mean(scores: list[Callable[[], float]]) -> Callable[[], float]:
    """The mean of several scores: every task counts the same."""
    return lambda: sum(score() for score in scores) / len(scores)
