"""Train a teacher on labels and a student under it in one run, each step of both together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import Field
from torch import Tensor

from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import DataRef, ModelRef, Step
from attar.core.traits import FLOAT
from attar.data.batches import Batch
from attar.models.model import Model
from attar.ops.chunked import Mix, Side, chunked
from attar.ops.divergence import IGNORED
from attar.train.fit import fit
from attar.train.losses import (
    Loss,
    Objective,
    forward,
    judge,
    judged_labels,
    plain,
    side,
    states,
)
from attar.train.rows import held_out_of, labeled, stream_of
from attar.train.schedule import Training
from attar.train.scoped import trained
from attar.train.teacher import learner

NAME = "teacher"  # of the submodule that holds the teacher while both are trained


class Online(Training, Step, kind="distill/online"):
    """The student follows the teacher's present answers, which spares a run of its own.

    The teacher learns from the labels and, where `back` says so, from the student: deep mutual
    learning (Zhang et al. 2018, arXiv 1706.00384). Both have one learning rate, and their
    gradient is clipped as one. States are compared by the student's own loss on held-out labels.
    The teacher is left behind at the end.
    """

    needs = frozenset({FLOAT})
    whole = True
    shares = True
    training_bytes = 32  # the teacher is trained too, and may be as large
    promises = frozenset({"changed"})

    teacher: ModelRef = Field(
        "original", description="what the teacher begins as: the original, an earlier stage, a path"
    )
    weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of KL(teacher || student) in the student's loss; the task's own loss "
        "has the rest",
    )
    back: float = Field(
        0.0,
        ge=0,
        le=1,
        description="weight of KL(student || teacher) in the teacher's loss; 0: it learns from "
        "labels alone",
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
    scope: Scope = Field(Scope.everything(), description="the student's modules to train")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train both, and leave the student's best state in it."""
        stream = stream_of(labeled(self.data, model, ctx), model, self, ctx)
        teacher = learner(ctx.model(self.teacher), model, ctx.device)
        held = held_out_of(self.held_out, model, self, ctx)
        evaluate = judge(Objective(model), held, plain(1.0)) if held else None
        pair = _Pair(model, teacher, self.mix(model, self.weight), self.mix(model, self.back))
        with trained(model, self.scope), _beside(model, teacher):
            fit(model, pair, stream, self, ctx, evaluate)
        return model

    def mix(self, model: Model, weight: float) -> Mix:
        """The loss of one of the two."""
        return forward(model, weight, self.temperature)


class _Pair:
    """The losses of two models that learn together, each taking the other's answers as given."""

    def __init__(self, student: Model, teacher: Model, own: Mix, theirs: Mix) -> None:
        self.student, self.teacher, self.own, self.theirs = student, teacher, own, theirs

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The sum of both losses over the student's positions."""
        labels = judged_labels(self.student, batch)
        one, other = (side(model, states(model, batch)) for model in (self.student, self.teacher))
        count, known = len(labels), labels != IGNORED
        labeled = int(known.sum())
        followed = chunked(one, _given(other), labels, self.own)
        parts = {"divergence": (float(followed.divergence), count)}
        total = followed.total
        if labeled:
            parts["task"] = (float(followed.task), labeled)
            back = _given(_kept(one, known)) if self.theirs.weight else None
            led = chunked(_kept(other, known), back, labels[known], self.theirs)
            parts["teacher"] = (float(led.task), labeled)
            total = total + led.total * (labeled / count)
        return Loss(total, count, parts)


@contextmanager
def _beside(student: Model, teacher: Model) -> Iterator[None]:
    """Let the teacher be trained and checkpointed with the student as long as this lasts."""
    student.module.add_module(NAME, teacher.module)
    try:
        yield
    finally:
        del student.module._modules[NAME]


def _given(known: Side) -> Side:
    """What one says, as the other takes it: without a gradient."""
    return Side(known.head, known.hidden.detach())


def _kept(whole: Side, rows: Tensor) -> Side:
    return Side(whole.head, whole.hidden[rows], whole.weights)
