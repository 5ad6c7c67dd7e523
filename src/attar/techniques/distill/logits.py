"""Learn a teacher's predictions: divergence of the logits, mixed with the task's own loss."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from attar.core.context import Context
from attar.core.step import Step
from attar.core.traits import FLOAT
from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.techniques.distill._guided import GuidedTraining
from attar.train.fit import fit
from attar.train.losses import Objective, judge
from attar.train.rows import held_out_of, stream_of
from attar.train.scoped import trained
from attar.train.teacher import ready

_SHARES = {"jensen-shannon": 0.5, "skewed": 0.1, "skewed-reverse": 0.1}


class Logits(GuidedTraining, Step, kind="distill/logits"):
    """Distillation of the output distribution (Hinton et al. 2015, arXiv:1503.02531).

    The loss is weight x divergence + (1 - weight) x the task's own loss. Rows of a classifier
    that have no label count with the divergence alone, so unlabeled data can be mixed in.
    States are compared on held-out data by the same loss at the mean of `weight` and
    `weight_end`, so that scores compare along a training whose weights change.
    """

    needs = frozenset({FLOAT})
    whole = True
    shares = True
    promises = frozenset({"changed"})

    divergence: Literal[
        "forward",
        "reverse",
        "jensen-shannon",
        "skewed",
        "skewed-reverse",
        "total-variation",
        "logits",
    ] = Field(
        "forward",
        description="forward: KL(teacher || student), which covers all that the teacher finds "
        "likely; reverse: KL(student || teacher), which keeps to what it finds likeliest; "
        "jensen-shannon: between the two (GKD); skewed, skewed-reverse: either, from a mixture of "
        "both (DistiLLM); total-variation: half the sum of what probabilities differ by; logits: "
        "the mean square of what logits differ by",
    )
    share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="of jensen-shannon, the teacher's share of the mixture, 0.5 by default; of "
        "skewed and skewed-reverse, the share of the first of the two, 0.1 by default",
    )
    targets: Literal["soft", "hard"] = Field(
        "soft",
        description="soft: the teacher's whole distribution; hard: its likeliest class or token, "
        "for which divergence and temperature mean nothing",
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="what both sides' logits are divided by in the divergence; 1 for language "
        "models and 2 for classifiers by default",
    )
    weight: float = Field(
        1.0, ge=0, le=1, description="weight of the divergence; the task's own loss has the rest"
    )
    weight_end: float | None = Field(
        None, ge=0, le=1, description="what the weight moves to, evenly, as training goes on"
    )
    learning_rate: float = Field(3e-4, gt=0, description="the highest learning rate")

    @model_validator(mode="after")
    def _of_mixtures(self) -> Self:
        if self.share is not None and self.divergence not in _SHARES:
            raise ValueError(
                f"`share` says nothing of {self.divergence}; it is for {', '.join(_SHARES)}"
            )
        return self

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the student, and leave the best state in it."""
        if self.also.signals():
            return self.follow(model, ctx, {}, lambda progress: self.mix(model, progress))
        stream = stream_of(ctx.data(self.data), model, self, ctx)
        teacher = ready(ctx.model(self.teacher), model, ctx.device, ctx.precision)
        objective = Objective(model, teacher, lambda progress: self.mix(model, progress))
        held = held_out_of(self.held_out, model, self, ctx)
        evaluate = judge(objective, held, self.mix(model, 0.5)) if held else None
        with trained(model, self.scope):
            fit(model, objective, stream, self, ctx, evaluate)
        return model

    def mix(self, model: Model, progress: float) -> Mix:
        """The loss at a share of the training done, from 0 to 1."""
        end = self.weight if self.weight_end is None else self.weight_end
        weight = self.weight + (end - self.weight) * progress
        default = 2.0 if model.task == "classification" else 1.0
        divergence = "hard" if self.targets == "hard" else self.divergence
        share = self.share or _SHARES.get(self.divergence, 0.5)
        return Mix(divergence, self.temperature or default, weight, 1 - weight, share)
