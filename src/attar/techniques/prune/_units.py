"""Heads or neurons taken out of blocks: choosing, cutting, and making up for what went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.view import BlockView
from attar.calibrate.walk import tell_errors, walk
from attar.core.context import Context
from attar.core.scope import ModuleFact, Scope
from attar.core.step import TASKS, Step, Task
from attar.core.traits import FLOAT, UNEVEN
from attar.data.batches import Batch
from attar.models.axes import ordinary
from attar.models.masks import is_masked
from attar.models.model import Model, set_weight, weight_of
from attar.models.uneven import settle
from attar.ops.gram import Gram
from attar.ops.importance import strongest, strongest_overall
from attar.ops.removal import costs_of_folding, fold, refit
from attar.techniques.prune._scores import Tap, activations, sensitivities, without_loss
from attar.train.rows import labeled

Kept = dict[int, list[int]]  # by block, the indices of the units that stay


class Units(Calibrated, Step):
    """How many stay, which, and what becomes of the rest: what taking units out shares.

    `role` is the part of a block that they sit in, `unit` what one is called, `ending` the axes
    of the linear that ends the part, whose inputs are theirs.
    """

    needs = frozenset({FLOAT})
    adds = frozenset({UNEVEN})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})
    role: ClassVar[str]
    unit: ClassVar[str]
    ending: ClassVar[tuple[str, str]]

    fraction: float = Field(0.75, gt=0, lt=1, description="the share to keep, of all in scope")
    share: Literal["even", "uneven"] = Field(
        "even",
        description="the same share of every block, or the best of all blocks together, at least "
        "one of each; `uneven` wants `score: taylor`, which alone weighs blocks by the loss",
    )
    score: Literal["activation", "taylor", "similarity"] = Field(
        "activation",
        description="what tells which matter: how active they are, what the loss would lose "
        "without them to first order, or what no other one can stand for",
    )
    refit: bool = Field(
        True,
        description="make up for what goes in the weights of what stays, by least squares; "
        "without it, `similarity` alone hands weights on, from each that goes to one that stays",
    )
    sequences: int = Field(32, ge=1, description="texts, or sequences of tokens, to measure on")
    length: int = Field(256, ge=8, description="tokens in a sequence")

    def lot(self) -> int:
        """How many go or stay together."""
        return 1

    def units_of(self, end: ModuleFact) -> int:
        """How many units there are in the block of this linear."""
        raise NotImplementedError

    def cut(self, model: Model, block: int, kept: list[int]) -> None:
        """Keep these units of a block, and no others."""
        raise NotImplementedError

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether whole parts of blocks are in scope, and something can go."""
        ends, chosen = self._ends(modules), set(self.scope.select(modules))
        split = (f.name for f in modules if f.role == self.role and len(f.axes) < len(f.shape))
        factors = [name for name in split if name in chosen]
        if factors:
            yield f"{factors[0]} is one of two factors. Take {self.unit} out before factorizing"
            return
        for end in ends:
            left = [f.name for f in _part(modules, end) if f.name not in chosen]
            if left:
                yield (
                    f"its scope holds {end.name} and not {left[0]}, and {self.unit} go from both. "
                    f"Widen it, to `{self.role}` for example"
                )
                return
        if not ends:
            yield f"its scope holds no {self.role} of a block. Widen it, to `{self.role}`"
        elif not self._something([self.units_of(end) for end in ends]):
            yield self._nothing(self.units_of(ends[0]))

    def unfit(self, task: Task) -> Iterable[str]:
        """Whether there is a loss for a score that goes by it."""
        return without_loss(self.score, task)

    def reshape(self, modules: Sequence[ModuleFact]) -> Sequence[ModuleFact]:
        """The same modules, smaller; shares that are uneven are known once they are measured."""
        ends = {end.block: end for end in self._ends(modules)}
        return [
            self._smaller(fact, ends[fact.block])
            if fact.block in ends and fact.role == self.role
            else fact
            for fact in modules
        ]

    def touched(self, modules: Sequence[ModuleFact]) -> Sequence[str]:
        """The linears that will be uneven: none where the config can say all sizes."""
        if self.evened(modules):
            return []
        return [fact.name for end in self._ends(modules) for fact in _part(modules, end)]

    def evened(self, modules: Sequence[ModuleFact]) -> Sequence[str]:
        """All linears of the part, of all blocks, where the config can say all sizes."""
        if self.share == "uneven" or not ordinary(self.reshape(modules), self.ending):
            return []
        return [fact.name for fact in modules if fact.role == self.role]

    def apply(self, model: Model, ctx: Context) -> Model:
        """Measure, choose, make up for what goes, and cut."""
        facts, before = model.facts(), model.parameters_count()
        self.insist(facts)
        if self.share == "uneven" and self.score != "taylor":
            ctx.warn(
                f"score: {self.score} does not weigh blocks by the loss, so their shares are "
                "poorly chosen. Take `score: taylor`, or `share: even`"
            )
        ends = self._ends(facts)
        batches = calibration(self, model, ctx)
        kept = self._choose(ends, self._scores(model, ends, batches, ctx))
        self._take(model, ends, kept, batches, ctx)
        if self.share == "even":
            settle(model, self.ending)
        there = sum(self.units_of(end) for end in ends)
        ctx.note(self.unit, f"{sum(map(len, kept.values()))} of {there}")
        for block, own in kept.items():
            ctx.point(f"block {self.unit} kept", block, len(own))
        ctx.note("share of all weights", round(model.parameters_count() / before, 4))
        return model

    def _ends(self, modules: Sequence[ModuleFact]) -> list[ModuleFact]:
        """The linears in scope that end a part, one a block."""
        chosen = set(self.scope.select(modules))
        return [fact for fact in modules if fact.axes == self.ending and fact.name in chosen]

    def _count(self, units: int) -> int:
        """How many of a block's units stay, where all blocks keep the same share."""
        return min(units, max(1, round(self.fraction * units)))

    def _something(self, units: Sequence[int]) -> bool:
        """Whether anything would go, of so many units by block."""
        if self.share == "even":
            return any(self._count(own) < own for own in units)
        surplus = sum(units) - round(self.fraction * sum(units))
        return surplus >= self.lot() / 2 and max(units) > self.lot()

    def _nothing(self, units: int) -> str:
        return f"nothing would go: it would keep all {units} {self.unit} of a block. Ask for fewer"

    def _smaller(self, fact: ModuleFact, end: ModuleFact) -> ModuleFact:
        units = self.units_of(end)
        kept = self._count(units)
        pairs = zip(fact.axes, fact.shape, strict=False)
        shape = tuple(n if axis in ("", "hidden") else n // units * kept for axis, n in pairs)
        heads = fact.heads
        if heads is not None:
            queries, keys = (n // units * kept for n in (heads.queries, heads.keys))
            heads = replace(heads, queries=queries, keys=keys)
        return replace(fact, shape=shape, heads=heads)

    def _scores(
        self, model: Model, ends: Sequence[ModuleFact], batches: Sequence[Batch], ctx: Context
    ) -> list[Tensor]:
        """A score for every unit, by block, comparable between blocks."""
        if self.score == "similarity":
            return _redundancies(model, {e.name: self.units_of(e) for e in ends}, batches, ctx)
        taps = {end.name: Tap("inputs", self.units_of(end)) for end in ends}
        if self.score == "taylor":
            labeled(self.data, model, ctx)
            found = sensitivities(model, batches, taps, ctx)
        else:
            found = activations(model, batches, taps, ctx)
            # Blocks differ in size by orders: each has one voice
            found = {name: own / own.norm().clamp_min(1e-12) for name, own in found.items()}
        return [found[end.name] for end in ends]

    def _choose(self, ends: Sequence[ModuleFact], scores: Sequence[Tensor]) -> Kept:
        blocks = [end.block or 0 for end in ends]
        if self.share == "even":
            lists = [strongest(own, self._count(len(own))) for own in scores]
        else:
            count = round(self.fraction * sum(map(len, scores)))
            lists = strongest_overall(scores, count, self.lot())
        return dict(zip(blocks, lists, strict=True))

    def _take(
        self,
        model: Model,
        ends: Sequence[ModuleFact],
        kept: Kept,
        batches: Sequence[Batch],
        ctx: Context,
    ) -> None:
        if not self.refit and self.score != "similarity":
            for block, own in kept.items():
                self.cut(model, block, own)
            return
        sizes = {end.name: end.shape[1] // self.units_of(end) for end in ends}
        # Blocks that run at the config's sizes alone are cut once all are done: zeros do till then
        later = model.family.alike

        def visit(view: BlockView) -> list[float]:
            errors: list[float] = []
            for (name,), gram in view.groups():
                own = kept[view.index]
                errors.append(_make_up(view.linears[name], gram, own, sizes[name], self.refit))
            if view.index in kept and not later:
                self.cut(model, view.index, kept[view.index])
            return errors

        tell_errors(ctx, walk(model, batches, Scope(patterns=tuple(sizes)), ctx, visit, "cutting"))
        for block, own in kept.items() if later else ():
            self.cut(model, block, own)


def _part(modules: Sequence[ModuleFact], end: ModuleFact) -> list[ModuleFact]:
    """The linears of the part of a block that `end` ends."""
    return [f for f in modules if f.linear and (f.block, f.role) == (end.block, end.role)]


def _redundancies(
    model: Model, units: Mapping[str, int], batches: Sequence[Batch], ctx: Context
) -> list[Tensor]:
    """What no other unit can stand for, for every unit of every block."""

    def visit(view: BlockView) -> list[list[float]]:
        found: list[list[float]] = []
        for (name,), gram in view.groups():
            weight, mean = weight_of(view.linears[name]).detach(), gram.mean
            size = weight.shape[1] // units[name]
            found.append(costs_of_folding(weight.cpu(), mean.cpu(), size).tolist())
        return found

    scratch = None if ctx.scratch is None else ctx.scratch / "similarity"
    apart = replace(ctx, scratch=scratch)  # the cutting walks through the same blocks
    blocks = walk(model, batches, Scope(patterns=tuple(units)), apart, visit, "similarity")
    return [torch.tensor(own, dtype=torch.float64) for found in blocks for own in found]


def _make_up(linear: nn.Module, statistic: Gram, kept: list[int], size: int, by_all: bool) -> float:
    """Let a linear do without the units that go; the relative squared error of its outputs.

    Their columns are zero then. By all that stay together, or each by one of them; a masked
    linear keeps its zeros, and so is left as it is.
    """
    weight, gram = weight_of(linear).detach(), statistic.mean
    columns = (torch.tensor(kept)[:, None] * size + torch.arange(size)).flatten().to(weight.device)
    if is_masked(linear):
        own = weight[:, columns]
    elif by_all:
        own = refit(weight, gram, columns.tolist(), statistic.count)
    else:
        own = fold(weight, gram, kept, size)
    new = torch.zeros_like(weight).index_copy(1, columns, own)
    lost, inner = (weight - new).double(), gram.double()
    whole = (weight.double() @ inner * weight.double()).sum()
    set_weight(linear, new)
    return float((lost @ inner * lost).sum() / whole.clamp_min(1e-30))
