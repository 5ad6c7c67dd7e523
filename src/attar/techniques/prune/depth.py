"""Take out the blocks that matter least, by what the model answers without each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.calibrate.refusals import insist_finite
from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.sensitivity import all_answers, answers, moved
from attar.core.context import Context
from attar.core.scope import ModuleFact, Scope
from attar.core.step import TASKS, DataRef, Step, Task, What
from attar.data.batches import Batch
from attar.models.axes import unsplit
from attar.models.blocks import after, recorded, without
from attar.models.model import Model, inference
from attar.models.resize import drop_blocks
from attar.ops.importance import block_influence
from attar.techniques.prune._exits import fixed_by_exits
from attar.techniques.prune._scores import block_sensitivities, without_loss
from attar.train.rows import labeled

_WAYS = ("remove", "keep", "fraction", "blocks")


class Depth(Calibrated, Step, kind="prune/depth"):
    """Remove whole blocks; the rest is an ordinary, shallower model that wants healing.

    Say how many with one of `remove`, `keep` and `fraction`, or which with `blocks`. How many
    are removed is known beforehand, which ones is measured: by `divergence`, blocks go one by
    one, each time the one without which the answers move least from the original's (KL in nats,
    at one position in four; of an encoder's vectors 1 - cosine); by `influence` (ShortGPT, arXiv
    2403.03853), those whose hidden states are most similar before and after, all at once: one
    pass over the data where the other takes about half as many as there are blocks (how active
    a block is tells little: what it puts out is mostly what it was given). Or by `taylor`, those
    without which the task's own loss would lose least to first order (Molchanov et al. 2017,
    arXiv 1611.06440, of what a block adds): one pass with gradients, and labels for a classifier.
    """

    version = 2
    needs = frozenset()
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})

    remove: int | None = Field(None, ge=1, description="how many blocks to take out")
    keep: int | None = Field(None, ge=1, description="how many blocks to keep")
    fraction: float | None = Field(
        None, gt=0, le=1, description="the share of the blocks to keep, to the nearest block"
    )
    blocks: tuple[int, ...] | None = Field(
        None, min_length=1, description="the very blocks to take out, the first is 0; reads no data"
    )
    score: Literal["divergence", "influence", "taylor"] = Field(
        "divergence",
        description="what tells which blocks matter: slower and better, or faster by what they "
        "turn, or by the gradient of the loss",
    )
    data: DataRef = Field("train", description="the dataset to measure on")
    sequences: int = Field(8, ge=1, description="texts, or sequences of tokens, to measure on")
    length: int = Field(256, ge=8, description="tokens in a sequence")
    scope: Scope = Field(
        Scope.everything(), description="blocks that may go, such as blocks[2:-2]; all by default"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [way for way in _WAYS if getattr(self, way) is not None]
        if len(given) != 1:
            found = f"got {' and '.join(given)}" if given else "none is there"
            raise ValueError(f"give exactly one of {', '.join(_WAYS)}; {found}")
        return self

    def references(self, what: What) -> Iterator[tuple[str, str]]:
        """The data to measure on, unless the blocks are given."""
        if self.blocks is None:
            yield from super().references(what)

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether there are blocks enough, and those that are named."""
        yield from fixed_by_exits(modules)
        there = _blocks(modules)
        free = self._free(modules)
        removed = self._count(len(there))
        outside = [index for index in self.blocks or () if index not in there]
        if outside:
            yield f"there is no block {outside[0]}: the model has blocks 0 to {len(there) - 1}"
        elif removed >= len(there):
            yield (
                f"it would remove {removed} of the {len(there)} blocks that there are; at least "
                "one must stay"
            )
        elif removed < 1:
            yield f"it would keep all {len(there)} blocks; ask for fewer"
        elif 0 in (self.blocks or ()) and _first_differs(modules):
            yield "block 0 is built unlike the others and must stay; remove another"
        elif removed > len(free):
            yield f"it is to remove {removed} blocks, and only {len(free)} of its scope can go"

    def unfit(self, task: Task) -> Iterable[str]:
        """Whether there is a loss for a score that goes by it."""
        return without_loss(self.score, task)

    def reshape(self, modules: Sequence[ModuleFact]) -> Sequence[ModuleFact]:
        """Fewer blocks, numbered anew; which ones go is only known where they are given."""
        there = _blocks(modules)
        gone = set(self.blocks or there[len(there) - self._count(len(there)) :])
        new = {old: index for index, old in enumerate(i for i in there if i not in gone)}
        return [
            fact if fact.block is None else _renamed(fact, new[fact.block])
            for fact in modules
            if fact.block not in gone
        ]

    def origin(self, modules: Sequence[ModuleFact]) -> Mapping[str, Sequence[str]]:
        """The names under which a block may have had its modules: all that are possible."""
        there, free = _blocks(modules), self._free(modules)
        if self.blocks is not None:
            free = [index for index in there if index in self.blocks]
        before = _before(there, free, self._count(len(there)))
        return {
            fact.name: [_renamed(fact, old).name for old in before.get(fact.block, ())]
            for fact in self.reshape(modules)
            if fact.block is not None
        }

    def apply(self, model: Model, ctx: Context) -> Model:
        """Measure, and take out."""
        facts = model.facts()
        self.insist(facts)
        gone = list(self.blocks or self._weakest(model, self._free(facts), ctx))
        drop_blocks(model, gone)
        ctx.note("removed", sorted(set(gone)))
        ctx.note("blocks", len(model.blocks))
        return model

    def _count(self, there: int) -> int:
        """How many blocks go."""
        if self.blocks is not None:
            return len(set(self.blocks))
        if self.remove is not None:
            return self.remove
        if self.keep is not None:
            return there - self.keep
        return there - max(1, round((self.fraction or 1) * there))

    def _free(self, modules: Sequence[ModuleFact]) -> list[int]:
        """The blocks in scope that may go."""
        found = self.scope.blocks(modules)
        return sorted(found - {0} if _first_differs(modules) else found)

    def _weakest(self, model: Model, free: list[int], ctx: Context) -> list[int]:
        batches = calibration(self, model, ctx)
        count = self._count(len(model.blocks))
        if self.score == "taylor":
            labeled(self.data, model, ctx)
            return _least(block_sensitivities(model, batches, ctx), free, count, ctx)
        if self.score == "influence":
            return _least_influence(model, batches, free, count, ctx)
        return _least_divergence(model, batches, free, count, ctx)


def _least_influence(
    model: Model, batches: list[Batch], free: list[int], count: int, ctx: Context
) -> list[int]:
    """The blocks that turn the hidden states least."""
    totals, tokens = torch.zeros(len(model.blocks)), 0
    with ctx.progress.bar("block influence", len(batches)) as bar:
        for batch in (batch.to(model.device) for batch in batches):
            with inference(model.device, ctx.precision), recorded(model) as states:
                model.hidden(batch)
            mask = batch.attention_mask.bool()
            there = int(mask.sum())
            for index in range(len(model.blocks)):
                score = block_influence(states[index], states[index + 1], mask)
                totals[index] += float(score) * there
            tokens += there
            bar.advance(1)
    return _least(totals / tokens, free, count, ctx)


def _least(scores: Tensor, free: list[int], count: int, ctx: Context) -> list[int]:
    """The blocks of the lowest scores, [blocks], all at once."""
    insist_finite({f"block {index}": scores[index] for index in free})
    for index in free:
        ctx.point("block influence", index, float(scores[index]))
    return sorted(free, key=lambda index: float(scores[index]))[:count]


def _least_divergence(
    model: Model, batches: list[Batch], free: list[int], count: int, ctx: Context
) -> list[int]:
    """Blocks one after another, each the one that is missed least once the others are gone.

    After the first round only twice as many are tried as are wanted: the rest came out far worse.
    """
    gone: list[int] = []
    trials = len(free) + sum(min(2 * count, len(free)) - turn for turn in range(1, count))
    with ctx.progress.bar("block influence", trials * len(batches)) as bar:
        original, total = all_answers(model, batches, ctx)
        while len(gone) < count:
            scores = dict.fromkeys(free, 0.0)
            for batch, own in zip(batches, original, strict=True):
                for index, score in _without_each(model, batch, own, gone, free, ctx):
                    scores[index] += score * len(own) / total
                    bar.advance(1, f"{len(gone) + 1} of {count}, without block {index}")
            if not gone:
                for index, score in scores.items():
                    ctx.point("block influence", index, score)
            first, *rest = sorted(free, key=lambda index: scores[index])
            free = rest if gone else rest[: 2 * count - 1]
            gone.append(first)
            ctx.point("divergence by blocks removed", len(gone), scores[first])
    return gone


def _without_each(
    model: Model,
    batch: Batch,
    original: Tensor,
    gone: Sequence[int],
    candidates: Iterable[int],
    ctx: Context,
) -> Iterator[tuple[int, float]]:
    """The divergence without each candidate; what lies before it is computed only once."""
    with inference(model.device, ctx.precision), without(model, gone):
        with recorded(model) as states:
            model.hidden(batch.to(model.device))
        for index in candidates:
            with after(model, index, states[index]):
                yield index, moved(model, answers(model, batch, ctx), original)


def _blocks(modules: Sequence[ModuleFact]) -> list[int]:
    return sorted({fact.block for fact in modules if fact.block is not None})


def _before(there: Sequence[int], free: Sequence[int], count: int) -> dict[int, list[int]]:
    """For each block that there will be, those that it may be, where `count` of `free` go."""
    found: dict[int, list[int]] = {}
    for place, index in enumerate(there):
        below = sum(other < index for other in free)
        above = sum(other > index for other in free)
        for gone in range(max(0, count - above), min(count, below) + 1):  # of those before it
            found.setdefault(place - gone, []).append(index)
    return found


def _first_differs(modules: Sequence[ModuleFact]) -> bool:
    """Whether the first block holds other modules than the next."""
    first, second = (
        {unsplit(_renamed(fact, 0).name) for fact in modules if fact.block == index}
        for index in (0, 1)
    )
    return bool(second) and first != second


def _renamed(fact: ModuleFact, block: int) -> ModuleFact:
    name: Any = fact.name.replace(f".{fact.block}.", f".{block}.", 1)
    return replace(fact, name=name, block=block)
