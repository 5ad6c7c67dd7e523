"""Learn a teacher's predictions on the student's own words: it writes, the teacher scores."""

from __future__ import annotations

from functools import partial
from typing import Self

from pydantic import Field, model_validator

from attar.core.context import Context
from attar.core.step import Step
from attar.data.example import Dataset
from attar.errors import UserError
from attar.models.model import Model
from attar.models.places import length_for
from attar.techniques.distill._answers import DIVERGENCES, Answers, Named, Weight
from attar.techniques.distill._guided import GuidedTraining
from attar.train.answers import Answers as Rows
from attar.train.beginnings import beginnings
from attar.train.fit import Batches
from attar.train.written import Written


class OnPolicy(Answers, GuidedTraining, Step, kind="distill/on-policy"):
    """Generalized knowledge distillation (Agarwal et al. 2024, GKD, arXiv:2306.13649).

    A prompt is a chat up to its last answer, or the first words of a text; running text is cut
    into pieces of `length` tokens first. After prompts come, in a share of the batches, words that
    the student samples as it is at that step, and in the others the data's own; the divergence
    counts on what comes after the prompt alone. So the student learns where its own mistakes
    lead, which no text written by others shows. The loss is weight x divergence + (1 - weight) x
    the task's own loss, which counts on the data's own endings alone: what the student wrote is
    no label. Held-out data is judged on its own words, all of them. Writing takes most of the
    time: a share of 1 is several times slower than 0.
    """

    version = 2
    tasks = ("causal-lm",)
    whole = True
    shares = True

    divergence: Named = Field("jensen-shannon", description=DIVERGENCES)
    weight: Weight = 1.0
    written: float = Field(
        0.5, ge=0, le=1, description="share of the batches whose endings the student writes"
    )
    prompt: int = Field(
        32,
        ge=1,
        description="tokens of a text that an ending is written to, up to the end of a word; half "
        "of a shorter text. Of a chat it is all up to the last answer",
    )
    heat: float = Field(1.0, gt=0, description="temperature at which the student writes")

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.prompt >= self.length:
            raise ValueError(
                f"prompt {self.prompt} leaves no room for an ending in length {self.length}"
            )
        if self.written == 1 and min(self.weight_at(0.0), self.weight_at(1.0)) < 1:
            raise ValueError(
                "with `written: 1` no words are the data's own, and the task's own loss counts on "
                "those alone. Write a smaller share, or leave out `weight` and `weight_end`"
            )
        if self.written and not max(self.weight_at(0.0), self.weight_at(1.0)):
            raise ValueError(
                "without weight for the divergence nothing is learned from what the student "
                "writes. Write `written: 0`, or raise `weight`"
            )
        return self

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the student, and leave the best state in it."""
        return self.follow(model, ctx, {}, partial(self.mix, model))

    def stream(self, model: Model, ctx: Context) -> Batches:
        """The data, and what the student makes of it."""
        dataset: Dataset = ctx.data(self.data)
        length = length_for(model, self.length)
        found = list(beginnings(dataset, model.tokenizer, length, self.prompt))
        most = min(length - 1, max(self.prompt + 1, length // 2))
        kept = [
            (before, after)
            for before, after in found
            if len(before) <= most and (after or self.written == 1)
        ]
        why = f"their prompts have more than {most} tokens, or nothing comes after them"
        if not kept:
            raise UserError(f"none of {len(found)} rows of {dataset.name!r} can be used: {why}")
        if len(kept) < len(found):
            ctx.warn(f"{len(found) - len(kept)} of {len(found)} rows are left out: {why}")
        rows = Rows(kept, model.tokenizer, self.batch, ctx.seed)
        rows.check(model.config.vocab_size)
        return Written(rows, model, ctx, length, self.written, self.heat)
