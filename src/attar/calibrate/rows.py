"""The batches that a calibrated step measures on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from attar.core.context import Context
from attar.core.step import DataRef
from attar.data.batches import Batch, held_out
from attar.models.model import Model


class Calibrated(BaseModel):
    """Which dataset to calibrate on, and how much of it, mixed into a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataRef = Field(default="train", description="the dataset to calibrate on")
    sequences: int = Field(default=32, ge=1, description="calibration sequences")
    length: int = Field(default=512, ge=8, description="tokens in a sequence")
    batch: int = Field(default=8, ge=1, description="sequences at a time")


def calibration(step: Calibrated, model: Model, ctx: Context) -> list[Batch]:
    """The first `sequences` of the step's data, `batch` at a time; warns where there are fewer."""
    batches = held_out(
        ctx.data(step.data),
        model.tokenizer,
        model.task,
        step.length,
        step.batch,
        step.sequences,
        labels=model.labels or None,
        seed=ctx.seed,
    )
    there = sum(batch.size for batch in batches)
    if there < step.sequences:
        ctx.warnings.append(
            f"data {step.data} holds {there} sequences of {step.length} tokens, and "
            f"{step.sequences} were asked for: calibrated on these {there}. "
            "Give more text, or ask for shorter sequences"
        )
    return batches
