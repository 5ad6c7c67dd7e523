"""The batches that a calibrated step measures on."""

from __future__ import annotations

from typing import Protocol

from attar.core.context import Context
from attar.data.batches import Batch, held_out
from attar.models.model import Model


class Calibrated(Protocol):
    """Settings of a step that is calibrated: which dataset, and how much of it."""

    @property
    def data(self) -> str: ...
    @property
    def sequences(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def batch(self) -> int: ...


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
