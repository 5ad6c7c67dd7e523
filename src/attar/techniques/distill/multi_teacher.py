"""Learn from several teachers at once: their mean, or more from those that are surer or right."""

from __future__ import annotations

from functools import partial
from typing import Self

from pydantic import Field, model_validator

from attar.core.context import Context
from attar.core.step import DataRef, ModelRef, Step
from attar.core.traits import FLOAT
from attar.models.model import Model
from attar.techniques.distill._answers import Answers
from attar.techniques.distill._guided import GuidedUpdating
from attar.train.ensemble import Combined, Ensemble
from attar.train.fit import fit
from attar.train.rows import held_out_of, stream_of
from attar.train.signals import toward
from attar.train.teacher import ready_by_name


class MultiTeacher(Answers, GuidedUpdating, Step, kind="distill/multi-teacher"):
    """Distillation of one distribution that is made of several teachers'.

    All have the student's vocabulary, or its classes. The loss is weight x divergence from what
    they say together + (1 - weight) x the task's own loss. They are made one by their
    probabilities, so the divergence `logits` has nothing to compare and is refused. All teachers'
    weights are in memory at once; of their answers, one teacher's to a few positions. A signal of
    `also` is the mean over the teachers, to each of which the student's states are brought apart;
    where they have its width, states are compared as they are, so take teachers of one origin.
    """

    needs = frozenset({FLOAT})
    shares = True
    promises = frozenset({"changed"})

    teachers: tuple[ModelRef, ...] = Field(
        min_length=2,
        description="whom to learn from: earlier stages, paths, or the original; two or more",
    )
    combined: Combined = Field(
        "mean",
        description="mean: of their probabilities; confidence: weighted at each position by how "
        "sure each is (one over exp of its entropy); best: at each position the one that finds "
        "the label likeliest, and their mean where there is no label",
    )
    learning_rate: float = Field(3e-4, gt=0, description="the highest learning rate")
    data: DataRef = Field("train", description="the dataset to learn on")
    held_out: DataRef | None = Field(
        "dev", description="the dataset that tells which state is best; none: the last is kept"
    )

    @model_validator(mode="after")
    def _of_probabilities(self) -> Self:
        if self.divergence == "logits":
            raise ValueError(
                "`divergence: logits` compares logits, and several teachers are made one by their "
                "probabilities, which leave no logits. Take another divergence"
            )
        return self

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the student, and leave the best state in it."""
        stream = stream_of(ctx.data(self.data), model, self, ctx)
        teachers = [ready_by_name(name, model, self.length, ctx) for name in self.teachers]
        mix = partial(self.mix, model)
        held, first = held_out_of(self.held_out, model, self, ctx), stream.batch(0)
        pairs = zip(self.teachers, teachers, strict=True)
        named = [(name, teacher, first) for name, teacher in pairs]
        with self.training(model, ctx), self.guides(model, named) as guides:
            temperature, seen = mix(0.0).temperature, bool(guides)
            ensemble = Ensemble(model, teachers, self.combined, temperature, seen)
            objective = toward(model, ensemble, mix, guides)
            fit(model, objective, stream, self, ctx, objective.score(held) if held else None)
        return model
