"""Learn a teacher's predictions on the student's own words: it writes, the teacher scores."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from attar.core.context import Context
from attar.core.step import Step
from attar.models.model import Model
from attar.techniques.distill._answers import DIVERGENCES, Answers, Named
from attar.techniques.distill._guided import GuidedTraining
from attar.train.fit import Batches
from attar.train.rows import stream_of
from attar.train.written import Written


class OnPolicy(Answers, GuidedTraining, Step, kind="distill/on-policy"):
    """Generalized knowledge distillation (Agarwal et al. 2024, GKD, arXiv:2306.13649).

    Rows of the data are cut to prompts. After those come, in a share of the batches, words that
    the student samples as it is at that step, and in the others the data's own; the divergence
    counts on what comes after the prompt alone. So the student learns where its own mistakes
    lead, which no text written by others shows. Held-out data is judged on its own words, all
    of them. Writing takes most of the time: a share of 1 is several times slower than 0.
    """

    tasks = ("causal-lm",)
    whole = True
    shares = True

    divergence: Named = Field("jensen-shannon", description=DIVERGENCES)
    written: float = Field(
        0.5, ge=0, le=1, description="share of the batches whose endings the student writes"
    )
    prompt: int = Field(32, ge=1, description="tokens of the data that an ending is written to")
    heat: float = Field(1.0, gt=0, description="temperature at which the student writes")

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.prompt >= self.length:
            raise ValueError(
                f"prompt {self.prompt} leaves no room for an ending in length {self.length}"
            )
        return self

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the student, and leave the best state in it."""
        return self.follow(model, ctx, {}, lambda _: self.weighed(model, 1.0))

    def stream(self, model: Model, ctx: Context) -> Batches:
        """The data, and what the student makes of it."""
        stream = stream_of(ctx.data(self.data), model, self, ctx)
        return Written(stream, model, ctx, self.written, self.prompt, self.heat)
