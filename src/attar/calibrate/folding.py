"""Folding: channels of a linear's inputs made smaller at their source, and larger in the linear.

What a block computes stays the same, but the weights become easier to round. A source is a norm,
or a linear that the inputs are made of by nothing but products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from attar.calibrate.view import BlockView
from attar.core.scope import Heads, ModuleFact
from attar.layers import QuantizedLinear
from attar.models.model import inference, set_weight, weight_of

_TRIED = 8.0  # what channels are made larger and smaller by, to see whether it changes anything
_TOLERANCE = 0.03  # of what a block adds to a token; folding what is no fold changes far more


@dataclass(frozen=True)
class Fold:
    """Linears that are given the same inputs, and the rows of the source that make these.

    `shared` input channels in a row are made of one channel of the source, head by head: more
    than 1 where queries share their keys. `head` is the size of a head.
    """

    linears: tuple[str, ...]
    source: str
    rows: slice
    shared: int = 1
    head: int = 1

    def tied(self, channels: Tensor) -> Tensor:
        """The mean over channels that cannot be scaled apart: [inputs] -> [inputs]."""
        parts = channels.view(-1, self.shared, self.head)
        return parts.mean(1, keepdim=True).expand_as(parts).reshape(-1)

    def apply(self, module: nn.Module, scales: Tensor) -> None:
        """Divide the inputs by `scales` [inputs], alike where they are tied, and multiply back."""
        own = scales.view(-1, self.shared, self.head)[:, 0].reshape(-1)
        _divide(module.get_submodule(self.source), self.rows, own)
        for name in self.linears:
            linear = module.get_submodule(name)
            set_weight(linear, weight_of(linear) * scales)


class Folds:
    """Finds the folds of blocks, which are alike where the blocks are.

    `scope` names the modules that may be changed, sources among them.
    """

    def __init__(self, scope: list[str], facts: list[ModuleFact]) -> None:
        self.scope, self.facts = set(scope), {fact.name: fact for fact in facts}
        self._known: dict[Any, list[Fold]] = {}

    def of(self, view: BlockView, groups: list[list[str]]) -> list[Fold]:
        """The folds of a block, in the order of its groups.

        Each was seen to change nothing, in this block or in one that is built and scoped alike.
        """
        prefix = f"{view.model.blocks_name}.{view.index}."
        own = [fact for fact in self.facts.values() if fact.name.startswith(prefix)]
        key = (
            tuple((fact.name.removeprefix(prefix), fact.shape) for fact in own),
            tuple(_inside(names, prefix) for names in groups),
            frozenset(_inside(self.scope, prefix)),
        )
        if key not in self._known:
            found = [fold for names in groups for fold in self._candidates(view, prefix, names)]
            self._known[key] = [_moved(fold, prefix, "") for fold in found if _holds(view, fold)]
        return [_moved(fold, "", prefix) for fold in self._known[key]]

    def _candidates(self, view: BlockView, prefix: str, names: list[str]) -> Iterator[Fold]:
        """What may be the source of these linears' inputs, by what their axes run over."""
        fact = self.facts[names[0]]
        if len(fact.axes) < 2:  # a factor of a linear: what it is given runs over nothing known
            return
        block = [f for f in self.facts.values() if f.name.startswith(prefix)]
        for source in self._sources(view, names[0], fact.axes[1], block):
            module = view.model.module.get_submodule(source.name)
            if source.name in self.scope and not isinstance(module, QuantizedLinear):
                yield _fold(tuple(names), fact, source)

    def _sources(
        self, view: BlockView, name: str, axis: str, block: list[ModuleFact]
    ) -> list[ModuleFact]:
        if axis == "hidden":
            norms = [fact for fact in block if fact.role == "norm" and fact.axes == ("hidden",)]
            return [fact for fact in norms if _makes(view, fact.name, name)]
        wanted = {"query": ("keys", "qkv", "query"), "neurons": ("neurons", "gated")}.get(axis, ())
        made = [fact for fact in block if len(fact.axes) == 2 and fact.axes[0] in wanted]
        return made[-1:]  # values come after queries and keys, what is gated after its gate


def fold_all(
    view: BlockView,
    groups: list[list[str]],
    folds: Folds,
    scales: Callable[[Fold, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Fold what `scales` makes of each fold and its stacked weights into a block.

    The scales by linear are returned; linears without a fold have none. Backwards, for the
    source of a later group is a linear of an earlier one, whose weights then count as they are.
    """
    found: dict[str, Tensor] = {}
    module = view.model.module
    for fold in reversed(folds.of(view, groups)):
        weights = [weight_of(module.get_submodule(name)) for name in fold.linears]
        own = scales(fold, torch.cat(weights))
        fold.apply(module, own)
        found |= dict.fromkeys(fold.linears, own)
    return found


def _fold(names: tuple[str, ...], fact: ModuleFact, source: ModuleFact) -> Fold:
    width, rows = fact.shape[1], source.shape[0]
    if fact.axes[1] != "query":
        return Fold(names, source.name, slice(rows - width, rows))
    heads = fact.heads or Heads(1, 1, "free")
    head = width // heads.queries
    made = heads.keys * head
    return Fold(names, source.name, slice(rows - made, rows), heads.queries // heads.keys, head)


def _inside(names: Iterable[str], prefix: str) -> tuple[str, ...]:
    """The names within a block, of those that lie in it."""
    return tuple(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def _moved(fold: Fold, old: str, new: str) -> Fold:
    """The same fold in another block."""
    linears = tuple(new + name.removeprefix(old) for name in fold.linears)
    source = new + fold.source.removeprefix(old)
    return Fold(linears, source, fold.rows, fold.shared, fold.head)


def _makes(view: BlockView, norm: str, linear: str) -> bool:
    """Whether what the norm puts out is the very tensor that the linear is given."""
    made: list[Tensor] = []
    given: list[Tensor] = []
    module = view.model.module
    handles = [
        module.get_submodule(norm).register_forward_hook(lambda *call: made.append(call[2])),
        module.get_submodule(linear).register_forward_pre_hook(
            lambda _, inputs: given.append(inputs[0])
        ),
    ]
    try:
        next(view.run())
    finally:
        for handle in handles:
            handle.remove()
    return any(tensor is other for tensor in made for other in given)


def _holds(view: BlockView, fold: Fold) -> bool:
    """Whether the block adds the same to most tokens after folding; the weights are put back.

    Most, for a first token may be so large that its own rounding is all that is seen of it.
    """
    module = view.model.module
    width = weight_of(module.get_submodule(fold.linears[0])).shape[1]
    pair, own = torch.tensor([_TRIED, 1 / _TRIED], device=view.model.device), width // fold.shared
    parts = pair.repeat(-(-own // 2))[:own].view(-1, 1, fold.head)
    scales = parts.expand(-1, fold.shared, -1).reshape(-1)
    with inference(view.model.device, "float32"), _kept(module, (*fold.linears, fold.source)):
        before = view.forward(0).float()
        fold.apply(module, scales)
        after = view.forward(0).float()
    added, moved = before - view.inputs[0].float(), after - before
    share = moved.norm(dim=-1) / added.norm(dim=-1).clamp_min(1e-12)
    return bool(share[view.masks[0]].median() <= _TOLERANCE)


@contextmanager
def _kept(module: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Put the parameters of these modules back at the end."""
    own = [p for name in names for p in module.get_submodule(name).parameters()]
    before = [parameter.detach().clone() for parameter in own]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(own, before, strict=True):
                parameter.copy_(value)


def _divide(source: nn.Module, rows: slice, scales: Tensor) -> None:
    """Make rows of a linear, or channels of a norm, so many times smaller."""
    bias = cast("Tensor | None", getattr(source, "bias", None))
    weight = cast("Tensor", source.weight)
    with torch.no_grad():
        if weight.dim() == 1:
            offset = _offset(source)
            weight[rows] = (weight[rows].float() + offset) / scales - offset
        else:
            own = weight_of(source)
            own[rows] = own[rows] / scales[:, None]
        if bias is not None:
            bias[rows] = bias[rows] / scales


def _offset(norm: nn.Module) -> float:
    """What a norm adds to its weight before it multiplies: 1 in Gemma's, 0 in the others."""
    weight = cast("Tensor", norm.weight)
    kept = weight.detach().clone()
    inputs = torch.linspace(-1, 1, len(weight), device=weight.device, dtype=weight.dtype)
    outputs: list[Tensor] = []
    with torch.no_grad():
        try:
            for value in (0.0, 1.0):
                weight.fill_(value)
                outputs.append(norm(inputs))
        finally:
            weight.copy_(kept)
    step = outputs[1] - outputs[0]
    bias = getattr(norm, "bias", None)
    rest = outputs[0] if bias is None else outputs[0] - bias
    return float(round(float((rest * step).sum() / step.square().sum())))
