"""Squares of gradients over calibration batches: a pass of its own, through the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from attar.calibrate.refusals import insist_finite, insist_labels
from attar.core.context import Context
from attar.core.keys import seed_of
from attar.core.step import Task
from attar.data.batches import Batch
from attar.models.model import Model, autocast, outputs_first
from attar.ops.chunked import Mix, chunked, drawn
from attar.ops.divergence import IGNORED
from attar.train.losses import Objective, side, states
from attar.train.scoped import frozen


def row_sensitivity(
    model: Model, batches: Sequence[Batch], names: Sequence[str], ctx: Context
) -> dict[str, Tensor]:
    """For every linear called `names`, its rows' squared gradients of the task's own loss: [rows].

    Summed over a row's weights and averaged over the batches that a loss is judged on, in
    float32: the diagonal of the empirical Fisher information. Each weight's gradient is given back
    as soon as it is counted. Raises UserError where no batch has a label, or what is made of them
    is NaN or infinite.
    """
    linears = {name: model.module.get_submodule(name) for name in names}
    found: dict[str, Tensor] = {}
    objective, bars = Objective(model), ctx.progress.bar("gradients", len(batches))
    judged = 0
    with frozen(model.module), ExitStack() as stack, bars as bar:
        for name, linear in linears.items():
            weight: Any = linear.weight.requires_grad_(True)
            stack.callback(
                weight.register_post_accumulate_grad_hook(_counting(found, name, linear)).remove
            )
        for batch in batches:
            with torch.enable_grad(), autocast(model.device, ctx.precision):
                loss = objective(batch.to(model.device), 0.0)
            if loss.count:
                loss.value.backward()
                judged += 1
            bar.advance()
    insist_labels(judged, batches)
    insist_finite(found)
    return {name: total / judged for name, total in found.items()}


def answer_sensitivity(
    model: Model, batches: Sequence[Batch], names: Sequence[str], ctx: Context
) -> dict[str, Tensor]:
    """For every linear called `names`, how much the answers feel each of its outputs: [rows].

    The mean over tokens of the squared gradient of a sequence's log-likelihood, for labels drawn
    from the model's own answers: the diagonal of the Fisher information. Half its product with
    the mean square of a small change of the outputs is about the KL in nats that it costs
    (Martens 2020, arXiv 1412.1193, section 9.2). The data's own labels are not read. Raises
    UserError where gradients are NaN or infinite.
    """
    found: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed_of(ctx.seed, "answers"))
    bars, tokens = ctx.progress.bar("gradients", len(batches)), 0
    with frozen(model.module), ExitStack() as stack, bars as bar:
        for name in names:
            linear = model.module.get_submodule(name)
            stack.callback(linear.register_forward_hook(_watching(found, name)).remove)
        for batch in batches:
            for one in _one_by_one(batch.to(model.device)):  # the graph of a sequence is enough
                with torch.enable_grad(), autocast(model.device, ctx.precision):
                    own = side(model, states(model, one))
                    insist_finite({"the head": own.hidden.detach()})
                    loss = chunked(own, None, drawn(own, generator), Mix())
                (loss.total * len(own.hidden)).backward()
                tokens += int(one.attention_mask.sum())
            bar.advance()
    insist_finite(found)
    return {name: total / tokens for name, total in found.items()}


def tokens_an_answer(batches: Sequence[Batch], task: Task) -> float:
    """How many tokens there are for each answer that is judged: of a classifier all of a text."""
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    if task == "classification":
        return tokens / sum(batch.size for batch in batches)
    if task == "masked-lm":
        return tokens / max(1, sum(int((batch.labels != IGNORED).sum()) for batch in batches))
    return 1.0


def _one_by_one(batch: Batch) -> Iterator[Batch]:
    parts = zip(
        *(t.split(1) for t in (batch.input_ids, batch.attention_mask, batch.labels)), strict=True
    )
    yield from (Batch(*part) for part in parts)


def _watching(found: dict[str, Tensor], name: str) -> Callable[..., None]:
    def watch(_: nn.Module, inputs: object, output: Tensor) -> None:
        def count(gradient: Tensor) -> None:
            squares = gradient.float().square().flatten(0, -2).sum(0)
            found[name] = found[name] + squares if name in found else squares

        output.requires_grad_(True)  # those that nothing before wants a gradient of are leaves
        output.register_hook(count)

    return watch


def _counting(found: dict[str, Tensor], name: str, linear: nn.Module) -> Callable[[Any], None]:
    def count(weight: Any) -> None:
        squares = outputs_first(linear, weight.grad).float().square()
        rows = squares.sum(1)
        found[name] = found[name] + rows if name in found else rows
        weight.grad = None

    return count
