"""What each block of a model is called with, and what reaches the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attar.models.model import Model, inference


@dataclass
class Call:
    """What a block is called with besides its hidden states, for one batch."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def record_calls(
    model: Model, batches: Sequence[Any], precision: str, keep: Callable[[Tensor], object]
) -> list[list[Call]]:
    """What each block is called with for each batch; `keep` is given the first block's inputs.

    The blocks themselves do not run: each hands on its input, so this costs next to nothing.
    """
    calls: list[list[Call]] = [[] for _ in model.blocks]
    with _recording(model, calls, keep), inference(model.device, precision):
        for batch in batches:
            model.hidden(batch.to(model.device))
    return calls


@contextmanager
def _recording(
    model: Model, calls: list[list[Call]], keep: Callable[[Tensor], object]
) -> Iterator[None]:
    def record(index: int) -> Callable[..., Tensor]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if index == 0:
                keep(hidden_states)
            calls[index].append(Call(args, kwargs))
            return hidden_states

        return forward

    try:
        for index, block in enumerate(model.blocks):
            block.forward = record(index)
        yield
    finally:
        for block in model.blocks:
            del block.forward
