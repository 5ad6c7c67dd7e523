"""How a student's answers are held against a teacher's: settings that several steps share."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.train.losses import usual_temperature
from attar.train.schedule import moved

_SHARES = {"jensen-shannon": 0.5, "skewed": 0.1, "skewed-reverse": 0.1}


Named = Literal[
    "forward",
    "reverse",
    "jensen-shannon",
    "skewed",
    "skewed-reverse",
    "total-variation",
    "logits",
]
DIVERGENCES = (
    "forward: KL(teacher || student), which covers all that the teacher finds likely; reverse: "
    "KL(student || teacher), which keeps to what it finds likeliest; jensen-shannon: between the "
    "two (GKD); skewed, skewed-reverse: either, from a mixture of both (DistiLLM); "
    "total-variation: half the sum of what probabilities differ by; logits: the mean square of "
    "what logits differ by"
)


Weight = Annotated[
    float,
    Field(ge=0, le=1, description="weight of the divergence; the task's own loss has the rest"),
]


class Weighed(BaseModel):
    """A weight that may move, mixed into a step as fields of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Weight = 0.5
    weight_end: float | None = Field(
        None, ge=0, le=1, description="what the weight moves to, evenly, as training goes on"
    )

    def weight_at(self, progress: float) -> float:
        """The weight at a share of the training done, from 0 to 1."""
        return moved(self.weight, self.weight_end, progress)


class Answers(Weighed):
    """A divergence, its temperature and its weight, mixed into a step as fields of its own."""

    divergence: Named = Field("forward", description=DIVERGENCES)
    share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="of jensen-shannon, the teacher's share of the mixture, 0.5 by default; of "
        "skewed and skewed-reverse, the share of the first of the two, 0.1 by default",
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="what both sides' logits are divided by in the divergence; 1 for language "
        "models and 2 for classifiers by default",
    )

    @model_validator(mode="after")
    def _of_mixtures(self) -> Self:
        if self.share is not None and self.divergence not in _SHARES:
            raise ValueError(
                f"`share` says nothing of {self.divergence}; it is for {', '.join(_SHARES)}"
            )
        return self

    def mix(self, model: Model, progress: float) -> Mix:
        """The loss at a share of the training done, from 0 to 1."""
        return self.weighed(model, self.weight_at(progress))

    def weighed(self, model: Model, weight: float) -> Mix:
        """The divergence with a weight, and the task's own loss with the rest."""
        temperature = self.temperature or usual_temperature(model)
        share = self.share or _SHARES.get(self.divergence, 0.5)
        return Mix(self.divergence, temperature, weight, 1 - weight, share)
