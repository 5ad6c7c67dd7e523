"""Take out the blocks that the model misses least, by measured influence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from attar.core.context import Context
from attar.core.scope import ModuleFact
from attar.core.step import DataRef, Step
from attar.data.batches import Batch, held_out
from attar.models.blocks import after, recorded
from attar.models.model import Model, inference
from attar.models.resize import drop_blocks
from attar.ops.divergence import forward_kl
from attar.ops.importance import block_influence

_STRIDE = 4  # of the positions whose distributions are compared; see docs/log.md


class Depth(Step, kind="prune/depth"):
    """Say how many blocks with exactly one of `remove`, `keep`, `fraction` and `blocks`."""

    promises = frozenset({"changed", "smaller"})

    remove: int | None = Field(None, ge=1, description="how many blocks to take out")
    keep: int | None = Field(None, ge=1, description="how many blocks to keep")
    fraction: float | None = Field(None, gt=0, lt=1, description="the share of blocks to keep")
    blocks: tuple[int, ...] | None = Field(None, description="the blocks to take out, from 0")
    score: Literal["divergence", "influence"] = Field(
        "divergence",
        description="what a block is worth: divergence, how far the model's predictions move when "
        "it is left out; influence, how far it turns the hidden states (ShortGPT), which is faster",
    )
    data: DataRef = Field("train", description="the dataset to measure on")
    sequences: int = Field(4, ge=1, description="texts, or sequences of tokens, to measure on")
    length: int = Field(256, ge=8, description="tokens in a sequence")
    batch: int = Field(4, ge=1, description="sequences at a time")

    @model_validator(mode="after")
    def _one_amount(self) -> Depth:
        names = ("remove", "keep", "fraction", "blocks")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of {', '.join(names)}; there is {said}")
        return self

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Refuse to take out more blocks than there are."""
        count = _count(modules)
        if self.blocks is not None:
            strange = [index for index in self.blocks if not 0 <= index < count]
            if strange:
                yield f"there is no block {strange[0]}; the model has blocks 0 to {count - 1}"
        if self.keep is not None and self.keep >= count:
            yield f"cannot keep {self.keep} of {count} blocks; `keep` must be below {count}"
        if not 0 < self._gone(count) < count:
            yield (
                f"cannot take {self._gone(count)} of {count} blocks out; between 1 and "
                f"{count - 1} can go"
            )

    def reshape(self, modules: Sequence[ModuleFact]) -> Sequence[ModuleFact]:
        """As many blocks fewer; which ones go is not known before they are measured."""
        kept = max(0, _count(modules) - self._gone(_count(modules)))
        return [fact for fact in modules if fact.block is None or fact.block < kept]

    def apply(self, model: Model, ctx: Context) -> Model:
        """Measure every block, and take the least of them out."""
        count = len(model.blocks)
        if self.blocks is not None:
            gone = sorted(set(self.blocks))
        else:
            scores = self._scores(model, ctx)
            for index, score in enumerate(scores):
                ctx.point("block influence", index, score)
            first = 1 if model.family.first_block_differs else 0
            order = sorted(range(first, count), key=lambda index: scores[index])
            gone = sorted(order[: self._gone(count)])
        drop_blocks(model, gone)
        ctx.note("removed blocks", gone)
        return model

    def _gone(self, count: int) -> int:
        if self.blocks is not None:
            return len(set(self.blocks))
        if self.remove is not None:
            return self.remove
        if self.keep is not None:
            return count - self.keep
        return count - max(1, round((self.fraction or 1.0) * count))

    def _scores(self, model: Model, ctx: Context) -> list[float]:
        batches = held_out(
            ctx.data(self.data),
            model.tokenizer,
            model.task,
            self.length,
            self.batch,
            self.sequences,
            labels=model.labels or None,
            seed=ctx.seed,
        )
        scores = [0.0] * len(model.blocks)
        total = len(batches) * len(model.blocks)
        with (
            inference(model.device, ctx.precision),
            ctx.progress.bar("measuring blocks", total) as bar,
        ):
            for batch in batches:
                batch = batch.to(model.device)
                with recorded(model) as states:
                    whole = _distributions(model, batch)
                    states = list(states)
                for index in range(len(scores)):
                    scores[index] += self._score(model, batch, states, index, whole) / len(batches)
                    bar.advance(1, f"block {index}")
        return scores

    def _score(
        self, model: Model, batch: Batch, states: list[Tensor], index: int, whole: Tensor
    ) -> float:
        if self.score == "influence":
            mask = batch.attention_mask.bool()
            return float(block_influence(states[index], states[index + 1], mask))
        # what comes before the block is as it was: only the blocks after it run again
        with after(model, index, states[index]):
            return float(forward_kl(_distributions(model, batch), whole))


def _distributions(model: Model, batch: Batch) -> Tensor:
    """Logits of every class, or of some positions: for an encoder those that are judged."""
    if model.task == "classification":
        return model.logits(batch)
    hidden = model.hidden(batch)
    if model.task == "masked-lm":
        return model.head(hidden[batch.labels >= 0])
    return model.head(hidden[:, ::_STRIDE])


def _count(modules: Sequence[ModuleFact]) -> int:
    return 1 + max((fact.block for fact in modules if fact.block is not None), default=-1)
