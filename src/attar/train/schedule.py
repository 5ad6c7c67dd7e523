"""How long to train, how fast, and when to stop: settings that every trained step shares."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from attar.core.step import Unkeyed


class Training(BaseModel):
    """Settings of the training loop, mixed into a step as fields of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float | None = Field(
        None, gt=0, description="passes over the data; 1 where neither steps nor tokens are given"
    )
    steps: int | None = Field(None, ge=1, description="optimizer steps, instead of epochs")
    tokens: int | None = Field(
        None, ge=1, description="tokens to train on, padding included, instead of epochs"
    )
    batch: int = Field(8, ge=1, description="sequences or rows at a time, on each process")
    accumulate: int = Field(1, ge=1, description="batches that make one optimizer step")
    length: int = Field(256, ge=8, description="tokens in a sequence, at most")
    learning_rate: float = Field(3e-4, gt=0, description="the highest learning rate")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with momentum")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(
        0.01, ge=0, description="decoupled weight decay of matrices, never of biases and norms"
    )
    warmup: float = Field(
        0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises"
    )
    decay: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="how the learning rate falls to zero after that"
    )
    clip: float | None = Field(1.0, gt=0, description="the largest norm of the gradient")
    evaluate_every: int | None = Field(
        None, ge=1, description="steps between evaluations; a quarter of all steps by default"
    )
    evaluate_on: int | None = Field(
        None,
        ge=1,
        description="held-out sequences (16 by default) or rows of a classifier (512) to judge on",
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations without a better one"
    )
    keep_best: bool = Field(True, description="end with the best evaluated state, not the last")
    recompute: Annotated[bool, Unkeyed()] = Field(
        False,
        description="keep no activations inside blocks, and compute them again on the way back: "
        "the same numbers in less memory, for about a third more time",
    )
    checkpoint_minutes: Annotated[float, Unkeyed()] = Field(
        5.0, ge=0, description="minutes between checkpoints; 0: after every step"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        given = [name for name in ("steps", "tokens", "epochs") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say how long to train; keep one")
        return self


def steps_of(schedule: Training, per_epoch: int, world: int = 1) -> int:
    """Optimizer steps in all, of `accumulate` batches on each of `world` processes."""
    together = schedule.accumulate * world
    if schedule.steps is not None:
        return schedule.steps
    if schedule.tokens is not None:
        return max(1, math.ceil(schedule.tokens / (schedule.batch * schedule.length * together)))
    return max(1, math.ceil((schedule.epochs or 1.0) * per_epoch / together))


def moved(start: float, end: float | None, progress: float) -> float:
    """A weight at a share of the training done, from 0 to 1; without an end it stays."""
    return start if end is None else start + (end - start) * progress


def rate_at(schedule: Training, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0: a function of nothing else."""
    rise = round(schedule.warmup * steps)
    if step < rise:
        return schedule.learning_rate * (step + 1) / (rise + 1)
    done = (step - rise) / max(1, steps - rise)
    if schedule.decay == "cosine":
        return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return schedule.learning_rate * (1 - done if schedule.decay == "linear" else 1)
