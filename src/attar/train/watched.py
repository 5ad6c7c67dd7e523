"""What a model makes of a batch on its way: hidden states, queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from typing import Any

from torch import Tensor, nn

from attar.models.blocks import recorded
from attar.models.model import Model
from attar.ops.alike import attention_scores
from attar.train.scoped import without_dropout


class Watched:
    """What the last forward pass of a model made.

    states: the hidden states before each block, and after the last, [batch, length, hidden];
    last: those that the model without its head puts out, which a norm may part from them; maps:
    how much each token attends to each in every block, [batch, heads, length, length], where the
    model was watched for it.
    """

    last: Tensor

    def __init__(self, model: Model, states: list[Tensor]) -> None:
        self.states = states
        self.made: list[list[Tensor]] = [[] for _ in model.blocks]
        self.maps: list[Tensor | None] = [None] * len(model.blocks)
        sizes = model.sizes
        self._head = sizes.head
        self._widths = [sizes.head * heads for heads in (sizes.queries, sizes.keys, sizes.keys)]

    def given(self) -> Watched:
        """The same as another model is given it: without a gradient."""
        found = copy(self)
        found.last = self.last.detach()
        found.states = [state.detach() for state in self.states]
        found.made = [[each.detach() for each in made] for made in self.made]
        found.maps = [None if one is None else one.detach() for one in self.maps]
        return found

    def qkv(self, block: int) -> list[Tensor]:
        """Queries, keys and values of a block, [batch, length, width], before any rotation."""
        made = self.made[block]
        return list(made[0].split(self._widths, -1)) if len(made) == 1 else made

    def heads(self, block: int) -> int:
        """How many heads of queries a block has."""
        return self.qkv(block)[0].shape[-1] // self._head

    def scores(self, block: int) -> Tensor:
        """What attention's softmax is taken of, [batch, heads, length, length], before any mask.

        Where attention multiplies queries and keys as they are, which `unscored` tells.
        """
        queries, keys, _ = self.qkv(block)
        return attention_scores(queries, keys, self.heads(block))


def unscored(model: Model) -> str | None:
    """Why queries and keys do not tell the scores of a model's attention; None where they do."""
    name = model.config.model_type
    if getattr(model.config, "rope_parameters", None):
        return f"{name} rotates queries and keys by their positions first"
    attention = model.blocks[0].get_submodule(model.family.attention_name)
    if getattr(attention, "is_causal", False):
        return f"{name} has scores for earlier tokens alone, not for all pairs"
    return None


@contextmanager
def watched(model: Model, maps: bool = False) -> Iterator[Watched]:
    """Note what the model makes of each batch, as long as this lasts.

    With `maps` its attention is computed step by step, for no faster way tells the shares, and
    without dropout, which would be in what is told.
    """
    handles: list[Any] = []
    with recorded(model) as states, _stepwise(model) if maps else nullcontext():
        found = Watched(model, states)
        handles.append(model.base.register_forward_hook(_ending(found)))
        for index, block in enumerate(model.blocks):
            for place, name in enumerate(model.family.qkv):
                hook = _noting(found.made[index], place == 0)
                handles.append(block.get_submodule(name).register_forward_hook(hook))
            if maps:
                attention = block.get_submodule(model.family.attention_name)
                handles.append(attention.register_forward_hook(_attending(found.maps, index)))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _stepwise(model: Model) -> Iterator[None]:
    """Attention that tells its shares, as long as this lasts."""
    config = model.module.config
    before = config._attn_implementation
    parts = [block.get_submodule(model.family.attention_name) for block in model.blocks]
    config._attn_implementation = "eager"
    try:
        with without_dropout(nn.ModuleList(parts)):
            yield
    finally:
        config._attn_implementation = before


def _attending(maps: list[Tensor | None], index: int) -> Callable[..., None]:
    def note(_: nn.Module, inputs: object, output: Any) -> None:
        maps[index] = output[1]

    return note


def _ending(found: Watched) -> Callable[..., None]:
    def note(_: nn.Module, inputs: object, output: Any) -> None:
        found.last = output.last_hidden_state

    return note


def _noting(made: list[Tensor], first: bool) -> Callable[..., None]:
    def note(_: nn.Module, inputs: object, output: Tensor) -> None:
        if first:
            made.clear()
        made.append(output)

    return note
