"""One walk over the blocks: every calibrated method is a visitor of it.

At each block the visitor is handed the block and the hidden states that reach it through the
blocks already changed. One block runs at a time, so its statistics alone are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attar.core.context import Context
from attar.core.scope import Scope
from attar.models.model import Model, inference
from attar.ops.gram import Gram


@dataclass
class _Call:
    """What a block is called with besides its hidden states, for one batch."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class BlockView:
    """One block of the walk.

    `inputs`: hidden states [batch, length, hidden] for each batch, from the blocks before.
    `masks`: [batch, length], True where a token is real, for each batch.
    `linears`: those in scope, by their name within the model.
    """

    index: int
    module: nn.Module
    linears: dict[str, nn.Module]
    inputs: list[Tensor]
    masks: list[Tensor]
    calls: list[_Call]
    precision: str

    def run(self) -> Iterator[Tensor]:
        """The block's outputs, batch by batch."""
        for hidden, call in zip(self.inputs, self.calls, strict=True):
            with inference(hidden.device, self.precision):
                output = self.module(hidden, *call.args, **call.kwargs)
            yield output[0] if isinstance(output, tuple) else output

    def grams(self) -> tuple[dict[str, Gram], list[Tensor]]:
        """The gram matrix of the inputs of every linear in scope, and the block's outputs.

        Linears that are given the same tensor share one gram.
        """
        grams: dict[str, Gram] = {}
        shared: dict[str, str] = {}
        seen: list[tuple[Tensor, str]] = []
        mask = self.masks[0]

        def hook(name: str) -> Callable[..., None]:
            def collect(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                leader = next((first for tensor, first in seen if tensor is inputs[0]), name)
                if leader != name:
                    shared[name] = leader
                    return
                seen.append((inputs[0], name))
                if name not in grams:
                    grams[name] = Gram(inputs[0].shape[-1])
                grams[name].add(inputs[0][mask] if not mask.all() else inputs[0])

            return collect

        handles = [
            linear.register_forward_pre_hook(hook(name)) for name, linear in self.linears.items()
        ]
        outputs: list[Tensor] = []
        try:
            for index, output in enumerate(self.run()):
                outputs.append(output)
                seen.clear()
                mask = self.masks[min(index + 1, len(self.masks) - 1)]
        finally:
            for handle in handles:
                handle.remove()
        for name, leader in shared.items():
            grams[name] = grams[leader]
        return grams, outputs


def walk(
    model: Model,
    batches: Sequence[Any],
    scope: Scope,
    ctx: Context,
    visit: Callable[[BlockView], list[Tensor] | None],
    label: str = "blocks",
) -> None:
    """Visit every block in order; `visit` may change the block it is handed.

    The next block is fed by the changed one, unless the visitor returns other outputs.
    """
    calls, inputs = record_calls(model, batches, ctx.precision)
    masks = [batch.attention_mask.to(model.device).bool() for batch in batches]
    names = model.linears(scope)
    with ctx.progress.bar(label, len(model.blocks)) as bar:
        for index, block in enumerate(model.blocks):
            prefix = f"{model.blocks_name}.{index}."
            linears = {name: linear for name, linear in names.items() if name.startswith(prefix)}
            view = BlockView(index, block, linears, inputs, masks, calls[index], ctx.precision)
            outputs = visit(view)
            if index + 1 < len(model.blocks):
                inputs = list(view.run()) if outputs is None else outputs
            bar.advance(1, f"block {index + 1} of {len(model.blocks)}")


def record_calls(
    model: Model, batches: Sequence[Any], precision: str
) -> tuple[list[list[_Call]], list[Tensor]]:
    """What each block is called with for each batch, and the first block's inputs.

    The blocks themselves do not run: each hands on its input, so this costs next to nothing.
    """
    calls: list[list[_Call]] = [[] for _ in model.blocks]
    first: list[Tensor] = []
    with _recording(model, calls, first), inference(model.device, precision):
        for batch in batches:
            model.hidden(batch.to(model.device))
    return calls, first


@contextmanager
def _recording(model: Model, calls: list[list[_Call]], first: list[Tensor]) -> Iterator[None]:
    def record(index: int) -> Callable[..., Tensor]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if index == 0:
                first.append(hidden_states)
            calls[index].append(_Call(args, kwargs))
            return hidden_states

        return forward

    try:
        for index, block in enumerate(model.blocks):
            block.forward = record(index)
        yield
    finally:
        for block in model.blocks:
            del block.forward
