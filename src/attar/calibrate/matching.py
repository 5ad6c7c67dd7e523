"""Training one block until its outputs are those of the original's block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from attar.calibrate.calls import Call
from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.view import BlockView
from attar.core.context import Context
from attar.core.keys import seed_of
from attar.data.batches import Batch
from attar.errors import UserError
from attar.models.model import Model, autocast, inference
from attar.train.scoped import in_float32

_HELD = 8  # of so many batches one is held out, the last of each


class Matched(NamedTuple):
    """How far a block's outputs are from the original's on batches that it was not trained on.

    In squares, relative to the original's outputs, averaged over tokens.
    """

    before: float
    after: float


def match(
    view: BlockView,
    rates: dict[nn.Parameter, float],
    steps: int,
    seed: int,
    optimizer: Callable[[Any], Optimizer],
) -> Matched:
    """Train parameters of the view's block, each at its own highest rate, against its targets.

    In float32, one batch of the walk at a step, rates falling to zero like a cosine. One batch
    in eight is held out; where these say that it did not help, the parameters are what they
    were. There must be two batches or more.
    """
    with in_float32(view.model.blocks[view.index]):
        exact = _exact(view)
        taught, held = taught_and_held(len(exact.inputs))
        before = _judge(exact, held)
        if not rates:
            return Matched(before, before)
        kept = [parameter.data for parameter in rates]
        for parameter in rates:  # what is mapped from a file is not written to
            parameter.data = parameter.data.clone()
        groups = [{"params": [parameter], "lr": rate} for parameter, rate in rates.items()]
        _train(exact, optimizer(groups), _order(taught, steps, seed, view.index))
        after = _judge(exact, held)
        if not after < before:
            for parameter, value in zip(rates, kept, strict=True):
                parameter.data = value
            after = before
        return Matched(before, after)


class Matching(Calibrated):
    """How much to train on, mixed into a step: two batches or more, for one is held out."""

    @model_validator(mode="after")
    def _some_held_out(self) -> Self:
        if self.sequences <= self.batch:
            raise ValueError(
                f"sequences: {self.sequences} make one batch of {self.batch}, which leaves none to "
                "hold out. Lower `batch`, or take more sequences"
            )
        return self


def calibration_to_match(step: Matching, model: Model, ctx: Context) -> list[Batch]:
    """The step's calibration, which must be two batches or more."""
    batches = calibration(step, model, ctx)
    if len(batches) < 2:
        raise UserError(
            f"{len(batches)} batch leaves none to hold out: lower `batch` below {step.batch}, "
            "or give more sequences"
        )
    return batches


def tell_matched(ctx: Context, found: Sequence[Matched]) -> None:
    """Put what every block was away from its targets, and is, into the report."""
    for index, (before, after) in enumerate(found):
        ctx.point("block error/before", index, before)
        ctx.point("block error/after", index, after)


def taught_and_held(count: int) -> tuple[list[int], list[int]]:
    """Batches to train on, and those held out."""
    held = [i for i in range(count) if i % _HELD == _HELD - 1] or [count - 1]
    return [i for i in range(count) if i not in held], held


def _order(taught: list[int], steps: int, seed: int, block: int) -> list[int]:
    """The batch of each step: all of them in random order, again and again."""
    generator = torch.Generator().manual_seed(seed_of(seed, "block", block))
    order: list[int] = []
    while len(order) < steps:
        order += torch.randperm(len(taught), generator=generator, device="cpu").tolist()
    return [taught[place] for place in order[:steps]]


def _exact(view: BlockView) -> BlockView:
    """The view with all that the block is given in float32."""

    def exact(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.float() if floating else value

    calls = [Call(*tree_map(exact, (call.args, call.kwargs))) for call in view.calls]
    return replace(view, calls=calls, exact=True)


def _train(view: BlockView, optimizer: Optimizer, order: Sequence[int]) -> None:
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
    for index in order:
        with torch.enable_grad(), autocast(view.model.device, view.precision):
            loss = distance(view, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()


def _judge(view: BlockView, batches: Sequence[int]) -> float:
    with inference(view.model.device, view.precision):
        tokens = {index: int(view.masks[index].sum()) for index in batches}
        missed = sum(float(distance(view, index)) * tokens[index] for index in batches)
    return missed / sum(tokens.values())


def distance(view: BlockView, index: int) -> Tensor:
    """Squares of what a batch's outputs miss, relative to the targets', averaged over tokens."""
    mask, targets = view.masks[index], (view.targets or [])[index]
    missed = (view.forward(index).float() - targets.float()).square().sum(-1)
    size = targets.float().square().sum(-1).clamp_min(1e-12)
    return (missed / size)[mask].mean()
