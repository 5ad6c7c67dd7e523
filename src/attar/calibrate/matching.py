"""Training one block until its outputs are those of the original's block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from attar.calibrate.walk import BlockView, Call
from attar.core.keys import seed_of
from attar.models.model import autocast, inference
from attar.train.scoped import in_float32

_HELD = 8  # of so many batches one is held out, the last of each


@dataclass(frozen=True)
class Matched:
    """How far a block's outputs are from the original's on batches that it was not trained on.

    In squares, relative to the original's outputs, averaged over tokens.
    """

    before: float
    after: float


def match(
    view: BlockView, rates: dict[nn.Parameter, float], epochs: int, precision: str, seed: int
) -> Matched:
    """Train parameters of the view's block, each at its own highest rate, against its targets.

    AdamW in float32, one batch of the walk at a time, rates falling to zero like a cosine. One
    batch in eight is held out; where these say that it did not help, the parameters are what
    they were. There must be two batches or more.
    """
    with in_float32(view.model.blocks[view.index]):
        return _match(_exact(view), rates, epochs, precision, seed)


def _match(
    view: BlockView, rates: dict[nn.Parameter, float], epochs: int, precision: str, seed: int
) -> Matched:
    count = len(view.inputs)
    held = [i for i in range(count) if i % _HELD == _HELD - 1] or [count - 1]
    taught = [i for i in range(count) if i not in held]
    before = _judge(view, held, precision)
    if not rates:
        return Matched(before, before)
    kept = [parameter.detach().clone() for parameter in rates]
    _train(view, rates, taught, epochs, precision, seed)
    after = _judge(view, held, precision)
    if not after < before:
        with torch.no_grad():
            for parameter, value in zip(rates, kept, strict=True):
                parameter.copy_(value)
        after = before
    return Matched(before, after)


def _exact(view: BlockView) -> BlockView:
    """The view with all that the block is given in float32."""

    def exact(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.float() if floating else value

    calls = [Call(*tree_map(exact, (call.args, call.kwargs))) for call in view.calls]
    return replace(view, inputs=[exact(inputs) for inputs in view.inputs], calls=calls)


def _train(
    view: BlockView,
    rates: dict[nn.Parameter, float],
    taught: Sequence[int],
    epochs: int,
    precision: str,
    seed: int,
) -> None:
    groups = [{"params": [parameter], "lr": rate} for parameter, rate in rates.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.95))
    steps = epochs * len(taught)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed_of(seed, "block", view.index))
    for _ in range(epochs):
        for place in torch.randperm(len(taught), generator=generator).tolist():
            with torch.enable_grad(), autocast(view.model.device, precision):
                loss = distance(view, taught[place])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()


def _judge(view: BlockView, batches: Sequence[int], precision: str) -> float:
    with inference(view.model.device, precision):
        return sum(float(distance(view, index)) for index in batches) / len(batches)


def distance(view: BlockView, index: int) -> Tensor:
    """Squares of what a batch's outputs miss, relative to the targets', averaged over tokens."""
    mask, targets = view.masks[index], (view.targets or [])[index]
    missed = (view.forward(index).float() - targets.float()).square().sum(-1)
    size = targets.float().square().sum(-1).clamp_min(1e-12)
    return (missed / size)[mask].mean()
