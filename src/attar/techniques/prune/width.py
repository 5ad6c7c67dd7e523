"""Narrow every block: the least active heads, neurons and hidden channels go."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.core.context import Context
from attar.core.scope import ModuleFact
from attar.core.step import DataRef, Step
from attar.data.batches import Batch, held_out
from attar.models.axes import Sizes, heads_of
from attar.models.blocks import recorded
from attar.models.model import Model, inference
from attar.models.resize import narrow
from attar.ops.importance import (
    activity,
    head_activity,
    importance,
    strongest,
    strongest_heads,
)


class Width(Step, kind="prune/width"):
    """Sizes are uniform over the blocks, so the result is an ordinary, smaller architecture.

    Which heads and neurons stay is chosen block by block, which channels once for the model,
    by their activity on calibration data (Minitron, arXiv 2407.14679).
    """

    promises = frozenset({"changed", "smaller"})

    fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="about the share of the blocks' parameters to keep: heads, neurons and hidden "
        "size each shrink by its square root",
    )
    heads: int | None = Field(None, ge=1, description="query heads to keep in each block")
    kv_heads: int | None = Field(None, ge=1, description="key and value heads to keep")
    neurons: int | None = Field(None, ge=1, description="feed-forward neurons to keep")
    hidden: int | None = Field(None, ge=1, description="hidden channels to keep")
    multiple: int = Field(
        32, ge=1, description="neurons and hidden size become multiples of it under `fraction`"
    )
    data: DataRef = Field("train", description="the dataset to measure activity on")
    sequences: int = Field(16, ge=1, description="texts, or sequences of tokens, to measure on")
    length: int = Field(256, ge=8, description="tokens in a sequence")
    batch: int = Field(8, ge=1, description="sequences at a time")

    @model_validator(mode="after")
    def _some_amount(self) -> Width:
        sizes = (self.heads, self.kv_heads, self.neurons, self.hidden)
        if self.fraction is None and all(size is None for size in sizes):
            raise ValueError("say how narrow: `fraction`, or some of heads, neurons and hidden")
        return self

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Refuse a hidden size that is not below the model's."""
        table = next((fact for fact in modules if fact.role == "embedding"), None)
        if self.hidden is not None and table is not None and self.hidden > table.shape[-1]:
            yield f"cannot keep {self.hidden} hidden channels of {table.shape[-1]}"

    def apply(self, model: Model, ctx: Context) -> Model:
        """Measure activity, then slice every weight."""
        queries, keys, neurons, hidden = self._sizes(model)
        scores = self._scores(model, ctx)
        old = model.sizes
        blocks = range(len(model.blocks))
        narrowed = narrow(
            model,
            heads=[
                strongest_heads(scores[f"heads {index}"], old.keys, keys, queries // keys)
                for index in blocks
            ],
            neurons=[strongest(scores[f"neurons {index}"], neurons) for index in blocks],
            channels=strongest(scores["channels"], hidden),
        )
        ctx.note("heads", f"{queries} of {old.queries} ({keys} of {old.keys} for keys and values)")
        ctx.note("neurons", f"{neurons} of {old.neurons}")
        ctx.note("hidden size", f"{hidden} of {old.hidden}")
        return narrowed

    def _sizes(self, model: Model) -> tuple[int, int, int, int]:
        """Query heads, key heads, neurons, hidden channels to keep."""
        old = model.sizes
        share = math.sqrt(self.fraction) if self.fraction is not None else 1.0
        rule = heads_of(model.config, model.family).rule
        queries, keys = _heads(old, self.heads, self.kv_heads, share)
        hidden = self.hidden or _rounded(old.hidden * share, self.multiple, old.hidden)
        if self.fraction is not None and self.hidden is None:
            if rule == "fill":
                hidden = queries * old.head
            elif rule == "divide":
                hidden = max(1, round(hidden / queries)) * queries
        neurons = self.neurons or _rounded(old.neurons * share, self.multiple, old.neurons)
        return queries, keys, neurons, hidden

    def _scores(self, model: Model, ctx: Context) -> dict[str, Tensor]:
        """Importance by name: `heads 3`, `neurons 3`, `channels`."""
        batches = held_out(
            ctx.data(self.data),
            model.tokenizer,
            model.task,
            self.length,
            self.batch,
            self.sequences,
            labels=model.labels or None,
            seed=ctx.seed,
        )
        seen: dict[str, list[Tensor]] = defaultdict(list)
        with (
            inference(model.device, ctx.precision),
            ctx.progress.bar("measuring activity", len(batches)) as bar,
        ):
            for batch in batches:
                _watch(model, batch.to(model.device), seen)
                bar.advance(1)
        return {name: importance(torch.cat(parts)) for name, parts in seen.items()}


def _watch(model: Model, batch: Batch, seen: dict[str, list[Tensor]]) -> None:
    """Run one batch and add its activities."""
    mask = batch.attention_mask.bool()
    heads = model.sizes.queries

    def heads_hook(index: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
            seen[f"heads {index}"].append(head_activity(inputs[0], mask, heads))

        return hook

    def neurons_hook(index: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
            seen[f"neurons {index}"].append(activity(inputs[0], mask))

        return hook

    handles = []
    for index, block in enumerate(model.blocks):
        out = block.get_submodule(model.family.out)
        down = block.get_submodule(model.family.down)
        handles.append(out.register_forward_pre_hook(heads_hook(index)))
        handles.append(down.register_forward_pre_hook(neurons_hook(index)))
    try:
        with recorded(model) as states:
            model.hidden(batch)
            # a channel counts by its share of each block's output, so that no block outweighs
            parts = [activity(state, mask) for state in states]
            seen["channels"].append(
                torch.stack([part / part.mean(-1, keepdim=True) for part in parts]).mean(0)
            )
    finally:
        for handle in handles:
            handle.remove()


def _rounded(size: float, multiple: int, most: int) -> int:
    """The nearest multiple, at least one of them and at most what there is."""
    if size >= most:
        return most
    return min(most, max(multiple, round(size / multiple) * multiple))


def _heads(old: Sizes, heads: int | None, keys: int | None, share: float) -> tuple[int, int]:
    """Query and key heads: the uniform choice nearest to what is asked, whole groups first."""
    wanted = heads if heads is not None else old.queries * share
    group = old.queries // old.keys
    choices = [
        (abs(count * each - wanted), each != group, count, each)
        for count in ([keys] if keys is not None else range(1, old.keys + 1))
        for each in range(1, group + 1)
    ]
    _, _, count, each = min(choices)
    return count * each, count
