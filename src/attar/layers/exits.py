"""Exits of a classifier: rows whose answer is sure leave it before the last block.

Nothing of the trunk is wrapped or renamed: the exits are one more submodule of the whole model,
called `exits`, and stand between its blocks only while the whole model is called. So whatever
walks the blocks, swaps or trains modules in them, or calls the model without its head, finds the
trunk as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Lock, get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.layers.swap import dtype_of, swappable
from attar.ops.exits import leaves, uncertainty

NAME = "exits"
Pool = Literal["first", "last", "mean"]
_LOCK = Lock()  # one for all: a lock of its own could not be copied with a model
_ALL_BLOCKS = ("past_key_values", "use_cache", "output_hidden_states", "output_attentions")


class Exit(nn.Module):
    """A small head: pooled hidden states [rows, width] -> logits [rows, classes].

    They are normalized first, for within the blocks of many families nothing else does so.
    """

    def __init__(self, width: int, neurons: int, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, neurons)
        self.out = nn.Linear(neurons, classes)

    def forward(self, states: Tensor) -> Tensor:
        states = functional.layer_norm(states, states.shape[-1:])
        return self.out(torch.tanh(self.dense(states)))


@swappable
class Exits(nn.ModuleDict):
    """The exits of a model, by the number of the block that each comes after.

    A row leaves at the first one whose uncertainty is at most `threshold`; at 0 none does. The
    rows that left are not given to the blocks after. All rows go through all blocks in training
    mode, where gradients are enabled, and where the caller asks for hidden states, attentions or
    a cache of keys and values. `blocks` and `head` name the list of blocks and the module whose
    outputs are the answers; `pool` says which hidden states that head reads.
    """

    def __init__(
        self,
        after: Sequence[int],
        sizes: tuple[int, int, int],
        blocks: str,
        head: str,
        pool: Pool,
        threshold: float = 0.0,
    ) -> None:
        super().__init__({str(index): Exit(*sizes) for index in after})
        self.sizes, self.blocks, self.head, self.pool = sizes, blocks, head, pool
        self.threshold = threshold
        self._passes: dict[int, _Pass] = {}  # calls under way, by thread
        self._replaced: list[tuple[nn.Module, Any]] = []  # and forwards that they replaced

    def attach(self, owner: nn.Module) -> None:
        """Watch the calls of the whole model."""
        owner.register_forward_pre_hook(self._begin, with_kwargs=True)
        owner.register_forward_hook(self._end, always_call=True)

    def reads(self, config: Any, given: Mapping[str, Any]) -> Tensor:
        """Where the exits read: a position [rows], or what to average over [rows, length].

        As the model's own head finds it, among the arguments that the model was called with.
        """
        tokens, mask = given.get("input_ids"), given.get("attention_mask")
        shown: Any = given.get("inputs_embeds") if tokens is None else tokens
        (rows, length), device = shown.shape[:2], shown.device
        if self.pool == "mean":
            full = torch.ones(rows, length, dtype=torch.bool, device=device)
            return full if mask is None else mask.bool()
        if self.pool == "first":
            return torch.zeros(rows, dtype=torch.long, device=device)
        padding = config.get_text_config().pad_token_id
        if tokens is None or padding is None:
            return torch.full((rows,), length - 1, device=device)
        return (torch.arange(length, device=device) * (tokens != padding)).argmax(-1)

    def answers(self, index: int, hidden: Tensor, reads: Tensor) -> Tensor:
        """Logits [rows, classes] of the exit after block `index`."""
        if reads.dim() == 1:
            return self[str(index)](hidden[torch.arange(len(hidden), device=hidden.device), reads])
        weights = reads.unsqueeze(-1).to(hidden.dtype)
        return self[str(index)]((hidden * weights).sum(1) / weights.sum(1))

    def spec(self) -> dict[str, Any]:
        """Where the exits are, how large, where they read, and the threshold."""
        return {
            "after": [int(index) for index in self],
            "sizes": list(self.sizes),
            "blocks": self.blocks,
            "head": self.head,
            "pool": self.pool,
            "threshold": self.threshold,
        }

    @classmethod
    def rebuild(cls, spec: dict[str, Any], model: nn.Module) -> nn.Module:
        """The same exits, empty, in the dtype of the model's other weights."""
        sizes: Any = tuple(spec["sizes"])
        return cls(**{**spec, "sizes": sizes}).to(dtype_of(model))

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._end()  # of a call that was interrupted
        names = inspect.signature(module.forward).parameters if args else ()
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        asked = any(given.get(name) for name in _ALL_BLOCKS) or any(
            getattr(module.config, name, False) for name in _ALL_BLOCKS[2:]
        )
        if self.threshold > 0 and not (module.training or torch.is_grad_enabled() or asked):
            reads = self.reads(module.config, given)
            with _LOCK:
                if not self._passes:
                    self._stand_between(module)
                self._passes[get_ident()] = _Pass(self, reads)

    def _end(self, *_: Any) -> None:
        with _LOCK:
            ended = self._passes.pop(get_ident(), None)
            if ended is None or self._passes:
                return
            while self._replaced:
                part, own = self._replaced.pop()
                if own is None:
                    part.__dict__.pop("forward", None)
                else:
                    part.forward = own

    def _stand_between(self, module: nn.Module) -> None:
        """Let blocks and head ask the call that they belong to what to do."""
        blocks, head = list(module.get_submodule(self.blocks).children()), _Pass.tell
        steps: list[tuple[nn.Module, Any]] = [(module.get_submodule(self.head), head)]
        for index, block in enumerate(blocks):
            step = partial(_Pass.run, index=index, last=index == len(blocks) - 1)
            steps.append((block, step))
        for part, step in steps:
            self._replaced.append((part, part.__dict__.get("forward")))
            part.forward = partial(self._forward, step, part.forward)

    def _forward(self, step: Any, forward: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        current = self._passes.get(get_ident())
        if current is None:  # another thread's call, which has no exits
            return forward(hidden, *args, **kwargs)
        return step(current, forward, hidden, args, kwargs)


class _Pass:
    """One call of the whole model: which rows are still on their way, and what the others said."""

    def __init__(self, exits: Exits, reads: Tensor) -> None:
        self.exits, self.reads = exits, reads
        self.rows = torch.arange(len(reads), device=reads.device)
        self.left = torch.zeros(len(reads), dtype=torch.bool, device=reads.device)
        self.answers: Tensor | None = None  # of those that left

    def run(
        self,
        forward: Callable[..., Any],
        hidden: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        index: int,
        last: bool,
    ) -> Tensor:
        """A block's turn, and that of the exit after it."""
        if len(self.rows):
            kwargs = {name: self._theirs(value) for name, value in kwargs.items()}
            output = forward(hidden, *self._theirs(args), **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
            if str(index) in self.exits:
                hidden = self._leave(index, hidden)
        if not last or self.answers is None:
            return hidden
        full = hidden.new_zeros(len(self.left), *hidden.shape[1:])
        full[self.rows] = hidden
        return full

    def tell(
        self,
        forward: Callable[..., Any],
        hidden: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        """The head's turn: rows that left have their answer, whatever it makes of their zeros."""
        told = forward(hidden, *args, **kwargs)
        if self.answers is None:
            return told
        said = self.answers[self.left].to(told.dtype)
        told[self.left] = said if told.dim() == 2 else said.unsqueeze(1)
        return told

    def _leave(self, index: int, hidden: Tensor) -> Tensor:
        """Let the rows go that are sure; the hidden states of the others."""
        logits = self.exits.answers(index, hidden, self.reads)
        sure = leaves(uncertainty(logits), self.exits.threshold)
        if not sure.any():
            return hidden
        if self.answers is None:
            self.answers = logits.new_zeros(len(self.left), logits.shape[-1])
        self.answers[self.rows[sure]] = logits[sure]
        self.left[self.rows[sure]] = True
        self.rows, self.reads = self.rows[~sure], self.reads[~sure]
        return hidden[~sure]

    def _theirs(self, value: Any) -> Any:
        """Of masks and positions, what belongs to the rows on their way.

        A first dimension that is no batch is for all rows alike.
        """
        if self.answers is None:
            return value
        if isinstance(value, Tensor):
            by_row = value.dim() > 1 and len(value) == len(self.left)
            return value[self.rows] if by_row else value
        if isinstance(value, tuple | list):
            return type(value)(self._theirs(each) for each in value)
        return value


@contextmanager
def all_blocks(module: nn.Module) -> Iterator[None]:
    """Let every row go through every block meanwhile, whatever exits the model has."""
    exits = getattr(module, NAME, None)
    if not isinstance(exits, Exits):
        yield
        return
    threshold, exits.threshold = exits.threshold, 0.0
    try:
        yield
    finally:
        exits.threshold = threshold
