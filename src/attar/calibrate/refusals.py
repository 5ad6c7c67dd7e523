"""What nothing can be measured on: data without a label, and numbers that are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from attar.data.batches import Batch
from attar.errors import UserError


def insist_finite(made: Mapping[str, Tensor]) -> None:
    """Raise UserError where what calibration data made, by place, holds NaN or infinity."""
    for name, values in made.items():
        if not values.sum(dtype=torch.float32).isfinite():
            raise UserError(
                f"what the calibration data makes at {name} is NaN or infinite, so that nothing "
                "can be measured there. Look at the model, or set `precision: float32` where it "
                "overflows"
            )


def insist_labels(judged: int, batches: Sequence[Batch]) -> None:
    """Raise UserError where none of the batches had anything that a loss is made of."""
    if not judged:
        raise UserError(
            f"none of the {sum(batch.size for batch in batches)} sequences measured on has a "
            "label, so no loss tells what matters. Raise `sequences`, give other data, or take "
            "a way that asks for no labels"
        )
