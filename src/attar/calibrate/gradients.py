"""Squares of gradients over calibration batches: a pass of its own, through the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from attar.core.context import Context
from attar.data.batches import Batch
from attar.models.model import Model, autocast, outputs_first
from attar.train.losses import Objective
from attar.train.scoped import frozen


def row_sensitivity(
    model: Model, batches: Sequence[Batch], names: Sequence[str], ctx: Context
) -> dict[str, Tensor]:
    """For every linear called `names`, its rows' squared gradients of the task's own loss: [rows].

    Summed over a row's weights and averaged over batches, in float32: the diagonal of the
    empirical Fisher information. Each weight's gradient is given back as soon as it is counted.
    """
    linears = {name: model.module.get_submodule(name) for name in names}
    found: dict[str, Tensor] = {}
    objective, bars = Objective(model), ctx.progress.bar("gradients", len(batches))
    with frozen(model.module), ExitStack() as stack, bars as bar:
        for name, linear in linears.items():
            weight: Any = linear.weight.requires_grad_(True)
            stack.callback(
                weight.register_post_accumulate_grad_hook(_counting(found, name, linear)).remove
            )
        for batch in batches:
            with torch.enable_grad(), autocast(model.device, ctx.precision):
                loss = objective(batch.to(model.device), 0.0)
            loss.value.backward()
            bar.advance()
    return {name: total / len(batches) for name, total in found.items()}


def _counting(found: dict[str, Tensor], name: str, linear: nn.Module) -> Callable[[Any], None]:
    def count(weight: Any) -> None:
        squares = outputs_first(linear, weight.grad).float().square()
        rows = squares.sum(1)
        found[name] = found[name] + rows if name in found else rows
        weight.grad = None

    return count
