"""Train a teacher on labels and a student under it in one run, each step of both together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

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
from attar.techniques.distill._answers import Answers
from attar.techniques.distill._guided import Beside
from attar.train.fit import fit
from attar.train.losses import (
    Loss,
    Objective,
    judge,
    judged_labels,
    plain,
    side,
    states,
)
from attar.train.rows import held_out_of, labeled, stream_of
from attar.train.schedule import Training, moved
from attar.train.scoped import trained
from attar.train.signals import Guide
from attar.train.teacher import learner

NAME = "teacher"  # of the submodule that holds the teacher while both are trained


class Online(Answers, Beside, Training, Step, kind="distill/online"):
    """The student follows the teacher's present answers, which spares a run of its own.

    The teacher learns from the labels and, where `back` says so, from the student: deep mutual
    learning (Zhang et al. 2018, arXiv 1706.00384). `weight` is that of the divergence in the
    student's loss, to which `also` adds signals from what the teacher makes on its way as it is at
    that step. Both have one learning rate, and their gradient is clipped as one. States are
    compared by the student's own loss on held-out labels. The teacher is left behind at the end.
    """

    needs = frozenset({FLOAT})
    whole = True
    shares = True
    training_bytes = 32  # the teacher is trained too, and may be as large
    promises = frozenset({"changed"})

    teacher: ModelRef = Field(
        "original", description="what the teacher begins as: the original, an earlier stage, a path"
    )
    back: float = Field(
        0.0,
        ge=0,
        le=1,
        description="weight in the teacher's loss of the same divergence, in which the student "
        "is then the teacher; 0: it learns from labels alone",
    )
    back_end: float | None = Field(
        None, ge=0, le=1, description="what `back` moves to, evenly, as training goes on"
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
        teacher = learner(ctx.model(self.teacher), model, self.length, ctx.device)
        held = held_out_of(self.held_out, model, self, ctx)
        evaluate = judge(Objective(model), held, plain(1.0)) if held else None
        guiding = self.guides(model, [("", teacher, stream.batch(0))])
        mixes = partial(self.mix, model), partial(self.mix_back, model)
        with trained(model, self.scope), _beside(model, teacher), guiding as guides:
            pair = _Pair(model, teacher, *mixes, *guides)
            fit(model, pair, stream, self, ctx, evaluate)
        return model

    def mix_back(self, model: Model, progress: float) -> Mix:
        """The teacher's loss at a share of the training done, from 0 to 1."""
        return self.weighed(model, moved(self.back, self.back_end, progress))


class _Pair:
    """The losses of two models that learn together, each taking the other's answers as given."""

    def __init__(
        self,
        student: Model,
        teacher: Model,
        own: Callable[[float], Mix],
        theirs: Callable[[float], Mix],
        guide: Guide | None = None,
    ) -> None:
        self.student, self.teacher, self.own, self.theirs = student, teacher, own, theirs
        self.guide = guide

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The sum of both losses over the student's positions, and of signals to the student."""
        own, theirs = self.own(progress), self.theirs(progress)
        labels = judged_labels(self.student, batch)
        one, other = (side(model, states(model, batch)) for model in (self.student, self.teacher))
        count, known = len(labels), labels != IGNORED
        labeled = int(known.sum())
        followed = chunked(one, _given(other), labels, own)
        parts = {"divergence": (float(followed.divergence), count)}
        total = followed.total
        if labeled:
            parts["task"] = (float(followed.task), labeled)
            back = _given(_kept(one, known)) if theirs.weight else None
            led = chunked(_kept(other, known), back, labels[known], theirs)
            parts["teacher"] = (float(led.task), labeled)
            total = total + led.total * (labeled / count)
        loss = Loss(total, count, parts)
        return loss if self.guide is None else self.guide.added(loss, batch, progress)


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
