"""Keep the heads, neurons and hidden channels that are most active; all blocks get one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.calibrate.rows import Calibrated, calibration
from attar.core.context import Context
from attar.core.scope import ModuleFact
from attar.core.step import DataRef, Step
from attar.core.traits import FLOAT
from attar.data.batches import Batch
from attar.errors import UserError
from attar.models.axes import Sizes, sizes_of_facts, widths
from attar.models.model import Model, inference
from attar.models.resize import narrow
from attar.ops.importance import (
    activity,
    head_activity,
    importance,
    strongest,
    strongest_heads,
)
from attar.techniques.prune._exits import fixed_by_exits
from attar.techniques.prune._sizes import Wanted, choose, weights_in_blocks

_SIZES = ("heads", "kv_heads", "neurons", "hidden")


class Width(Calibrated, Step, kind="prune/width"):
    """Narrow every block alike; the result is an ordinary, narrower model that wants healing.

    Scores are activations on calibration data (Minitron, arXiv 2407.14679). A head of keys and
    values goes with all the query heads that share it, or some of each group's go.
    """

    needs = frozenset({FLOAT})
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
    data: DataRef = Field("train", description="the dataset to measure activations on")
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

    def reshape(self, modules: Sequence[ModuleFact]) -> Sequence[ModuleFact]:
        """The same modules, narrower."""
        new = choose(modules, self._wanted())
        return modules if isinstance(new, str) else [_narrower(fact, new) for fact in modules]

    def apply(self, model: Model, ctx: Context) -> Model:
        """Measure activations, choose, and cut."""
        facts = model.facts()
        for problem in self.check(facts):
            raise UserError(f"{self.kind}: {problem}")
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
        watch = _Watch(model)
        with ctx.progress.bar("activations", len(batches)) as bar, watch.hooks():
            for batch in batches:
                watch.run(batch.to(model.device), ctx.precision)
                bar.advance(1)
        return watch.scores()


@dataclass(frozen=True)
class _Scores:
    """Importance of query heads and neurons, by block, and of channels."""

    heads: list[Tensor]
    neurons: list[Tensor]
    channels: Tensor


@dataclass
class _Watch:
    """What flows through a model: the inputs of the linears that end a part, and norms' outputs."""

    model: Model
    seen: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])
    mask: Any = None

    def run(self, batch: Batch, precision: str) -> None:
        """Let a batch through."""
        self.mask = batch.attention_mask.bool()
        with inference(self.model.device, precision):
            self.model.hidden(batch)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Collect as long as the block lasts."""
        handles: list[Any] = []
        for fact in self.model.facts():
            module = self.model.module.get_submodule(fact.name)
            what = _measured(fact)
            if what == "channels":
                handles.append(module.register_forward_hook(self._outputs(fact.name)))
            elif what:
                handles.append(module.register_forward_pre_hook(self._inputs(fact.name, what)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def scores(self) -> _Scores:
        """What was collected, as importance."""
        scores = {name: importance(torch.cat(parts)) for name, parts in self.seen.items()}
        found: dict[str, list[Tensor]] = {"heads": [], "neurons": [], "channels": []}
        for fact in self.model.facts():
            if fact.name in scores:
                found[_measured(fact)].append(scores[fact.name])
        # Norms differ in size by orders: each has one voice
        channels = torch.stack(
            [part / part.norm().clamp_min(1e-12) for part in found["channels"]]
        ).sum(0)
        return _Scores(found["heads"], found["neurons"], channels)

    def _inputs(self, name: str, what: Literal["heads", "neurons"]) -> Callable[..., None]:
        def collect(_: Any, inputs: tuple[Tensor, ...]) -> None:
            if what == "neurons":
                found = activity(inputs[0], self.mask)
            else:
                found = head_activity(inputs[0], self.mask, self.model.sizes.queries)
            self.seen.setdefault(name, []).append(found.cpu())

        return collect

    def _outputs(self, name: str) -> Callable[..., None]:
        def collect(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.seen.setdefault(name, []).append(activity(output, self.mask).cpu())

        return collect


def _measured(fact: ModuleFact) -> Any:
    """What a module's activations tell about: `heads`, `neurons`, `channels`, or nothing."""
    if fact.axes == ("hidden", "query"):
        return "heads"
    if fact.axes == ("hidden", "neurons"):
        return "neurons"
    return "channels" if fact.role == "norm" and fact.axes == ("hidden",) else ""


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
