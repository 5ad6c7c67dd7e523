"""How much blocks, heads, neurons and channels matter, by what is given, put out, or lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attar.calibrate.refusals import insist_finite, insist_labels
from attar.core.context import Context
from attar.core.step import Task
from attar.data.batches import Batch
from attar.models.blocks import recorded, replaced
from attar.models.model import Model, autocast, inference
from attar.ops.importance import activity, head_activity, importance, taylor
from attar.train.losses import Objective
from attar.train.scoped import frozen


def without_loss(score: str, task: Task) -> Iterator[str]:
    """What is wrong with a score for a task: gradients are those of a loss of its own."""
    if score == "taylor" and task == "embedding":
        yield "`score: taylor` goes by a loss, and a model of vectors has none of its own"


@dataclass(frozen=True)
class Tap:
    """Where a module is listened to: at its inputs or outputs, which make so many units."""

    side: Literal["inputs", "outputs"]
    units: int


def activations(
    model: Model, batches: Sequence[Batch], taps: Mapping[str, Tap], ctx: Context
) -> dict[str, Tensor]:
    """The importance of every unit by its activity, in one pass without gradients."""
    found: dict[str, list[Tensor]] = {name: [] for name in taps}
    mask = torch.empty(0)

    def hear(name: str, value: Tensor) -> Tensor:
        units = taps[name].units
        alone = units == value.shape[-1]
        own = activity(value, mask) if alone else head_activity(value, mask, units)
        found[name].append(own.cpu())
        return value

    with ctx.progress.bar("activations", len(batches)) as bar, ExitStack() as stack:
        _listen(model, taps, hear, stack)
        for batch in batches:
            batch = batch.to(model.device)
            mask = batch.attention_mask.bool()
            with inference(model.device, ctx.precision):
                model.hidden(batch)
            bar.advance(1)
    scores = {name: importance(torch.cat(parts)) for name, parts in found.items()}
    insist_finite(scores)
    return scores


def sensitivities(
    model: Model, batches: Sequence[Batch], taps: Mapping[str, Tap], ctx: Context
) -> dict[str, Tensor]:
    """The importance of every unit by what the task's own loss would lose, to first order.

    A pass of its own through the whole model, with gradients of what is heard and of no weight:
    the values of one batch are in memory at a time.
    """
    found: dict[str, Tensor] = {}

    def hear(name: str, value: Tensor) -> Tensor:
        # With all weights frozen, the first that is heard begins the graph.
        own = value if value.requires_grad else value.detach().requires_grad_()
        values = own.detach()  # a hook that held the tensor itself would never let it go

        def count(gradient: Tensor) -> None:
            parts = taylor(values, gradient, taps[name].units).sum(0).cpu()
            found[name] = found[name] + parts if name in found else parts

        own.register_hook(count)
        return own

    objective, bars = Objective(model), ctx.progress.bar("gradients", len(batches))
    judged = 0
    with frozen(model.module), bars as bar, ExitStack() as stack:
        _listen(model, taps, hear, stack)
        for batch in batches:
            with torch.enable_grad(), autocast(model.device, ctx.precision):
                loss = objective(batch.to(model.device), 0.0)
            if loss.count:
                (loss.value * loss.count).backward()  # the sum: sequences count as much everywhere
            judged += loss.count
            del loss  # and with it the graph, before the next one is made
            bar.advance(1)
    insist_labels(judged, batches)
    insist_finite(found)
    return {name: total / judged for name, total in found.items()}


def block_sensitivities(model: Model, batches: Sequence[Batch], ctx: Context) -> Tensor:
    """What the task's own loss would lose without each block, to first order: [blocks].

    A block that goes hands on what it is given, so what is lost is its part of the sum.
    """
    totals, judged = torch.zeros(len(model.blocks), dtype=torch.float64), 0
    objective, bars = Objective(model), ctx.progress.bar("gradients", len(batches))
    with frozen(model.module), bars as bar, recorded(model) as states:
        own = model.blocks[0].forward

        def begin(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return own(hidden.detach().requires_grad_(), *args, **kwargs)

        with replaced(model, {0: begin}):
            for batch in batches:
                with torch.enable_grad(), autocast(model.device, ctx.precision):
                    loss = objective(batch.to(model.device), 0.0)
                if loss.count:
                    slopes = torch.autograd.grad(loss.value * loss.count, states[1:])
                    for index, slope in enumerate(slopes):
                        part = (states[index + 1] - states[index]).detach()
                        totals[index] += taylor(part, slope, 1).sum().cpu()
                judged += loss.count
                states.clear()
                del loss  # and with it the graph, before the next one is made
                bar.advance(1)
    insist_labels(judged, batches)
    return totals / judged


def _listen(
    model: Model,
    taps: Mapping[str, Tap],
    hear: Callable[[str, Tensor], Tensor],
    stack: ExitStack,
) -> None:
    """Let `hear` see, and hand on, what passes every tap, as long as the stack lasts."""

    def inputs(name: str) -> Callable[..., Any]:
        return lambda _, given: (hear(name, given[0]), *given[1:])

    def outputs(name: str) -> Callable[..., Any]:
        return lambda _, given, made: hear(name, made)

    for name, tap in taps.items():
        module: nn.Module = model.module.get_submodule(name)
        if tap.side == "inputs":
            handle = module.register_forward_pre_hook(inputs(name))
        else:
            handle = module.register_forward_hook(outputs(name))
        stack.callback(handle.remove)
