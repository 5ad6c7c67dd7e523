"""Keep the heads, neurons and hidden channels that matter most; all blocks get one size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.calibrate.rows import Calibrated, calibration
from attar.core.context import Context
from attar.core.scope import ModuleFact
from attar.core.step import TASKS, DataRef, Step, Task
from attar.core.traits import CACHED, FLOAT, HEADED, UNEVEN
from attar.errors import UserError
from attar.models.axes import Sizes, sizes_of_facts, widths
from attar.models.model import Model
from attar.models.resize import narrow
from attar.models.uneven import NEURONS, QUERIES
from attar.ops.importance import strongest, strongest_heads
from attar.techniques.prune._exits import fixed_by_exits
from attar.techniques.prune._scores import Tap, activations, sensitivities, without_loss
from attar.techniques.prune._sizes import Wanted, choose, weights_in_blocks
from attar.train.rows import labeled

_SIZES = ("heads", "kv_heads", "neurons", "hidden")


class Width(Calibrated, Step, kind="prune/width"):
    """Narrow every block alike; the result is an ordinary, narrower model that wants healing.

    By how active they are on calibration data (Minitron, arXiv 2407.14679), or by what the loss
    would lose without them (Molchanov et al. 2017, arXiv 1611.06440). A head of keys and values
    goes with all the query heads that share it, or some of each group's go. By similarity, heads
    and neurons go in `prune/heads` and `prune/neurons`; a hidden channel passes through every
    norm, so no other one can stand for it in all blocks at once.
    """

    version = 2
    needs = frozenset({FLOAT})
    forbids = frozenset({UNEVEN, CACHED, HEADED})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})

    fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="the share of the weights of the blocks' linears to keep, about: heads and "
        "hidden size shrink to nearly its square root, and the neurons make up for their rounding",
    )
    heads: int | None = Field(None, ge=1, description="query heads to keep in every block")
    kv_heads: int | None = Field(
        None, ge=1, description="heads of keys and values to keep; by default whole groups go"
    )
    neurons: int | None = Field(None, ge=1, description="feed-forward neurons to keep in a block")
    hidden: int | None = Field(None, ge=1, description="the hidden size to keep")
    multiple: int = Field(
        32, ge=1, description="what `fraction` rounds neurons and the hidden size to"
    )
    score: Literal["activation", "taylor"] = Field(
        "activation",
        description="what tells which matter: how active they are, or what the loss would lose "
        "without them to first order",
    )
    data: DataRef = Field("train", description="the dataset to measure on")
    sequences: int = Field(16, ge=1, description="texts, or sequences of tokens, to measure on")
    length: int = Field(256, ge=8, description="tokens in a sequence")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        sizes = [name for name in _SIZES if getattr(self, name) is not None]
        if self.fraction is not None and sizes:
            raise ValueError(f"give either fraction or sizes, got fraction and {sizes[0]}")
        if self.fraction is None and not sizes:
            raise ValueError(f"give fraction, or one or more of {', '.join(_SIZES)}")
        return self

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether the architecture can have the sizes."""
        yield from fixed_by_exits(modules)
        if len(self.scope.select(modules)) < len(modules):
            yield (
                "it narrows all modules alike, so its scope cannot be a part of them; leave the "
                "scope out, and say what to narrow by heads, neurons or hidden"
            )
        sizes = choose(modules, self._wanted())
        if isinstance(sizes, str):
            yield sizes

    def unfit(self, task: Task) -> Iterable[str]:
        """Whether there is a loss for a score that goes by it."""
        return without_loss(self.score, task)

    def reshape(self, modules: Sequence[ModuleFact]) -> Sequence[ModuleFact]:
        """The same modules, narrower."""
        new = choose(modules, self._wanted())
        return modules if isinstance(new, str) else [_narrower(fact, new) for fact in modules]

    def apply(self, model: Model, ctx: Context) -> Model:
        """Measure, choose, and cut."""
        facts = model.facts()
        self.insist(facts)
        old, new = sizes_of_facts(facts), choose(facts, self._wanted())
        if isinstance(new, str):
            raise UserError(f"{self.kind}: {new}")
        small = _cut(model, new, self._measure(model, ctx))
        kept = weights_in_blocks(facts, new) / weights_in_blocks(facts, old)
        ctx.note("heads", f"{new.queries} of {old.queries}")
        ctx.note("kv_heads", f"{new.keys} of {old.keys}")
        ctx.note("neurons", f"{new.neurons} of {old.neurons}")
        ctx.note("hidden", f"{new.hidden} of {old.hidden}")
        ctx.note("share of the blocks' weights", round(kept, 4))
        ctx.note(
            "share of all weights", round(small.parameters_count() / model.parameters_count(), 4)
        )
        return small

    def _wanted(self) -> Wanted:
        return Wanted(
            self.fraction, self.heads, self.kv_heads, self.neurons, self.hidden, self.multiple
        )

    def _measure(self, model: Model, ctx: Context) -> _Scores:
        batches = calibration(self, model, ctx)
        facts = [fact for fact in model.facts() if not fact.name.startswith(model.family.head)]
        taps = {fact.name: tap for fact in facts if (tap := _tap(fact)) is not None}
        if self.score == "taylor":
            labeled(self.data, model, ctx)
            found = sensitivities(model, batches, taps, ctx)
        else:
            found = activations(model, batches, taps, ctx)
        parts: dict[tuple[str, ...], list[Tensor]] = {}
        for fact in facts:
            if fact.name in taps:
                parts.setdefault(fact.axes, []).append(found[fact.name])
        # Norms differ in size by orders: each has one voice
        channels = [own / own.norm().clamp_min(1e-12) for own in parts["hidden",]]
        return _Scores(parts[QUERIES], parts[NEURONS], torch.stack(channels).sum(0))


@dataclass(frozen=True)
class _Scores:
    """Importance of query heads and neurons, by block, and of channels."""

    heads: list[Tensor]
    neurons: list[Tensor]
    channels: Tensor


def _tap(fact: ModuleFact) -> Tap | None:
    """Where a module tells about heads, neurons or channels; None where it does not."""
    if fact.axes == QUERIES and fact.heads is not None:
        return Tap("inputs", fact.heads.queries)
    if fact.axes == NEURONS:
        return Tap("inputs", fact.shape[1])
    channels = fact.role == "norm" and fact.axes == ("hidden",)
    return Tap("outputs", fact.shape[0]) if channels else None


def _cut(model: Model, new: Sizes, scores: _Scores) -> Model:
    old = model.sizes
    heads = [
        strongest_heads(part, old.keys, new.keys, new.queries // new.keys) for part in scores.heads
    ]
    neurons = [strongest(part, new.neurons) for part in scores.neurons]
    return narrow(model, heads, neurons, strongest(scores.channels, new.hidden))


def _narrower(fact: ModuleFact, new: Sizes) -> ModuleFact:
    long = widths(new)
    shape = tuple(long.get(axis, size) for axis, size in zip(fact.axes, fact.shape, strict=True))
    heads = fact.heads and replace(fact.heads, queries=new.queries, keys=new.keys)
    return replace(fact, shape=shape, heads=heads)
