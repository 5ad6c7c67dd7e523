"""What a model makes of a batch on its way: hidden states, queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from attar.models.blocks import recorded
from attar.models.model import Model


class Watched:
    """What the last forward pass of a model made.

    states: the hidden states before each block, and after the last, [batch, length, hidden];
    last: those that the model without its head puts out, which a norm may part from them.
    """

    last: Tensor

    def __init__(self, model: Model, states: list[Tensor]) -> None:
        self.states = states
        self.made: list[list[Tensor]] = [[] for _ in model.blocks]
        sizes = model.sizes
        self._widths = [sizes.head * heads for heads in (sizes.queries, sizes.keys, sizes.keys)]

    def qkv(self, block: int) -> list[Tensor]:
        """Queries, keys and values of a block, [batch, length, width], before any rotation."""
        made = self.made[block]
        return list(made[0].split(self._widths, -1)) if len(made) == 1 else made


@contextmanager
def watched(model: Model) -> Iterator[Watched]:
    """Note what the model makes of each batch, as long as this lasts."""
    handles: list[Any] = []
    with recorded(model) as states:
        found = Watched(model, states)
        handles.append(model.base.register_forward_hook(_ending(found)))
        for index, block in enumerate(model.blocks):
            for place, name in enumerate(model.family.qkv):
                hook = _noting(found.made[index], place == 0)
                handles.append(block.get_submodule(name).register_forward_hook(hook))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


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
