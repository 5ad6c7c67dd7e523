"""Running a model with some of its blocks doing something else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attar.errors import UserError
from attar.models.model import Model

Forward = Callable[..., Any]


@contextmanager
def replaced(model: Model, forwards: Mapping[int, Forward]) -> Iterator[None]:
    """Let these blocks compute something else; each is called as the block is."""
    blocks = {index: model.blocks[index] for index in forwards}
    before: dict[int, Forward | None] = {
        index: block.__dict__.get("forward") for index, block in blocks.items()
    }
    try:
        for index, block in blocks.items():
            block.forward = forwards[index]
        yield
    finally:
        for index, block in blocks.items():
            own = before[index]
            if own is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = own


@contextmanager
def recorded(model: Model) -> Iterator[list[Tensor]]:
    """The hidden states that each block is given, and after those what the last one makes."""
    seen: list[Tensor] = []
    last = len(model.blocks) - 1

    def watch(index: int, block: Any) -> Forward:
        own = block.forward

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if index == 0:
                seen.clear()
            seen.append(hidden)
            output = own(hidden, *args, **kwargs)
            if index == last:
                seen.append(first_of(output))
            return output

        return forward

    with replaced(model, {i: watch(i, block) for i, block in enumerate(model.blocks)}):
        yield seen


def recomputed(model: Model) -> Any:
    """Keep of each block what it is given alone; the rest is computed again on the way back.

    Gradient checkpointing (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost",
    arXiv 1604.06174): the same numbers for about a third more time.
    """

    def again(block: Any) -> Forward:
        own = block.forward

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return own(hidden, *args, **kwargs)
            if kwargs.get("past_key_values") is not None:
                raise UserError(
                    "recompute: a prefix of keys and values is kept in a cache, which a second "
                    "pass through a block would fill again. Leave recompute out"
                )
            return checkpoint(own, hidden, *args, use_reentrant=False, **kwargs)

        return forward

    return replaced(model, {i: again(block) for i, block in enumerate(model.blocks)})


def without(model: Model, indices: Collection[int]) -> Any:
    """Leave these blocks out: each hands on what it is given."""
    return replaced(model, dict.fromkeys(indices, _pass))


def after(model: Model, index: int, hidden: Tensor) -> Any:
    """Take `hidden` for what block `index` makes; it and the blocks before it do not run."""

    def give(_: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden

    return replaced(model, dict.fromkeys(range(index + 1), give))


def first_of(output: Any) -> Tensor:
    """The hidden states in what a block makes; older transformers put them in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def _pass(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden
