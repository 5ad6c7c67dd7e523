"""How a student's answers are held against a teacher's: settings that several steps share."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.train.losses import usual_temperature

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


class Answers(BaseModel):
    """A divergence and its temperature, mixed into a step as fields of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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

    def weighed(self, model: Model, weight: float) -> Mix:
        """The divergence with a weight, and the task's own loss with the rest."""
        temperature = self.temperature or usual_temperature(model)
        share = self.share or _SHARES.get(self.divergence, 0.5)
        return Mix(self.divergence, temperature, weight, 1 - weight, share)
