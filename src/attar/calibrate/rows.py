"""The batches that a calibrated step measures on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field

from attar.core.context import Context
from attar.core.step import DataRef
from attar.data.batches import Batch, held_out
from attar.data.example import Dataset
from attar.models.model import Model
from attar.models.places import length_for

_RUN = 8  # tokens in a row that prose hardly says twice


class Calibrated(BaseModel):
    """Which dataset to calibrate on, and how much of it, mixed into a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataRef = Field(default="train", description="the dataset to calibrate on")
    sequences: int = Field(default=32, ge=1, description="calibration sequences")
    length: int = Field(default=512, ge=8, description="tokens in a sequence")
    batch: int = Field(default=8, ge=1, description="sequences at a time")


def calibration(step: Calibrated, model: Model, ctx: Context) -> list[Batch]:
    """The first `sequences` of the step's data, `batch` at a time.

    Warns where there are fewer, where all are of one class of several, and where they say the
    same again and again.
    """
    dataset: Dataset = ctx.data(step.data)
    batches = held_out(
        dataset,
        model.tokenizer,
        model.task,
        length_for(model, step.length),
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
    labels = [row.label for row in dataset.examples] if model.task == "classification" else []
    first, every = ({*some} - {None} for some in (labels[:there], labels))
    if len(first) == 1 < len(every):
        ctx.warnings.append(
            f"data {step.data} begins with {there} rows of one class ({first.pop()}), and nothing "
            "else was measured on. Shuffle its rows, or ask for more sequences"
        )
    new = _new(batches)
    if new < 0.5:
        ctx.warnings.append(
            f"data {step.data} repeats itself: of its runs of {_RUN} tokens only {100 * new:.0f} % "
            "are different, so the result fits these few texts. Give more texts, of several kinds"
        )
    return batches


def _new(batches: Sequence[Batch]) -> float:
    """The share of all runs of tokens that are different ones."""
    weights = torch.randint(1 << 62, (_RUN,), generator=torch.Generator().manual_seed(0))
    tokens = [b.input_ids[b.attention_mask.bool()] for b in batches if b.media is None]
    runs = [(each.unfold(0, _RUN, 1) * weights).sum(1) for each in tokens if len(each) >= _RUN]
    if not runs:
        return 1.0
    found = torch.cat(runs)
    return len(found.unique()) / len(found)
