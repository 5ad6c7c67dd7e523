"""Let texts whose class is sure early leave a classifier before its last block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.core.context import Context
from attar.core.scope import ModuleFact, Scope
from attar.core.step import DataRef, Step
from attar.data.batches import Batch
from attar.errors import UserError
from attar.layers.exits import NAME, Exits
from attar.layers.swap import swap
from attar.models.blocks import recorded
from attar.models.model import Model, inference
from attar.models.pooling import head_of, pooling_of
from attar.ops.divergence import forward_kl
from attar.ops.exits import Leaving, leaving, sweep, uncertainty, widest
from attar.techniques.prune._exits import has_exits
from attar.train.fit import fit
from attar.train.losses import Loss
from attar.train.rows import held_out_of, stream_of
from attar.train.schedule import Training
from attar.train.scoped import frozen

_CURVE = "agreement by share of blocks run"
_POINTS = 50  # of the curve, about


class EarlyExit(Training, Step, kind="prune/early-exit"):
    """Exits on the way, and a threshold for how sure is sure.

    As in FastBERT (Liu et al. 2020, arXiv 2004.02178). An exit is a small head on the hidden
    state that the model's own head reads. Exits learn the model's own last answers, by KL and
    without labels; the model itself stays as it is, bit by bit. A text leaves at the first exit
    whose answer has an entropy, as a share of the highest there is, of at most `threshold`. The
    blocks after are given the other texts of the batch alone, so time is saved in PyTorch, in
    evaluation mode and without gradients. What changes the model's answers is best done before.
    """

    needs = frozenset()
    tasks = ("classification",)
    whole = True
    training_bytes = 4  # the weights: nothing of the trunk is trained
    promises = frozenset({"changed"})

    exits: int | None = Field(
        None, ge=1, description="how many, evenly spaced; one after each block by default"
    )
    neurons: int = Field(128, ge=1, description="channels between the two linears of an exit")
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="how unsure a text may leave; chosen by `lose` where not given",
    )
    lose: float = Field(
        1.0,
        ge=0,
        le=100,
        description="points of agreement with the whole model that may be lost on held-out data: "
        "the largest threshold that loses no more is taken",
    )
    data: DataRef = Field("train", description="the dataset to learn on; it needs no labels")
    held_out: DataRef | None = Field(
        "dev",
        description="the dataset that tells which state is best, and chooses the threshold; it "
        "needs no labels, and should not be the one that results are told on",
    )
    learning_rate: float = Field(3e-3, gt=0, description="the highest learning rate")
    scope: Scope = Field(
        Scope.everything(),
        description="blocks to put exits after, such as blocks[2:]; the last one never has one",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.threshold is not None and "lose" in self.model_fields_set:
            raise ValueError("threshold and lose both say when to leave; keep one")
        return self

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether there are blocks to put so many exits after, and none yet."""
        there = len(self._candidates(modules))
        if has_exits(modules):
            yield "the model has exits already"
        elif not there:
            yield "its scope names no block but the last, and an exit comes before that"
        elif self.exits is not None and self.exits > there:
            yield f"it is to add {self.exits} exits, and there are {there} blocks for them"

    def reshape(self, modules: Sequence[ModuleFact]) -> Sequence[ModuleFact]:
        """Two more linears for every exit, after all that there is."""
        width, classes = _shape(modules)
        shapes = {"dense": (self.neurons, width), "out": (classes, self.neurons)}
        added = [
            ModuleFact(f"{NAME}.{index}.{leaf}", "other", True, None, shape, ("", ""))
            for index in self._after(modules)
            for leaf, shape in shapes.items()
        ]
        return [*modules, *added]

    def apply(self, model: Model, ctx: Context) -> Model:
        """Add the exits, train them, and choose the threshold."""
        facts = model.facts()
        self.insist(facts)
        held = held_out_of(self.held_out, model, self, ctx)
        if not held and self.threshold is None:
            raise UserError(
                f"there is no data {self.held_out!r} to choose the threshold on. Name some in "
                "`held_out`, or give `threshold`"
            )
        stream = stream_of(ctx.data(self.data), model, self, ctx)
        exits = self._install(model, facts, ctx.seed)
        objective = _Imitation(model, exits)
        with frozen(model.module):
            exits.requires_grad_(True)
            fit(model, objective, stream, self, ctx, objective.judge(held) if held else None)
        if held:
            self._choose(exits, objective.survey(held, ctx), len(model.blocks), ctx)
        else:
            exits.threshold = self.threshold or 0.0
        return model

    def _candidates(self, modules: Sequence[ModuleFact]) -> list[int]:
        """The blocks in scope but for the model's last."""
        found = self.scope.blocks(modules)
        last = max((fact.block for fact in modules if fact.block is not None), default=0)
        return sorted(found - {last})

    def _after(self, modules: Sequence[ModuleFact]) -> list[int]:
        """The blocks that get an exit."""
        there = self._candidates(modules)
        if self.exits is None or self.exits >= len(there):
            return there
        parts = self.exits + 1
        return [there[round(part * (len(there) + 1) / parts) - 1] for part in range(1, parts)]

    def _install(self, model: Model, facts: Sequence[ModuleFact], seed: int) -> Exits:
        width, classes = _shape(facts)
        sizes = (width, self.neurons, classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            exits = Exits(
                self._after(facts), sizes, model.blocks_name, head_of(model), pooling_of(model)
            )
        exits.to(model.device, model.module.dtype)
        swap(model.module, NAME, exits)  # which attaches them
        return exits

    def _choose(self, exits: Exits, held: _Survey, blocks: int, ctx: Context) -> None:
        """Set the threshold, and tell what each would do."""
        runs = [*(int(index) + 1 for index in exits), blocks]
        found = sweep(held.unsure, held.agreed)
        chosen = widest(found, self.lose / 100)
        if self.threshold is not None:
            chosen = leaving(held.unsure, held.agreed, self.threshold)
        exits.threshold = chosen.threshold
        curve = dict(sorted((each.mean(runs) / blocks, each.agreement) for each in found))
        every = -(-len(curve) // _POINTS)
        for share in reversed(list(curve)[::-every]):  # the last is the whole model
            ctx.point(_CURVE, share, curve[share])
        _tell(chosen, runs, ctx)


@dataclass(frozen=True)
class _Survey:
    """What the exits say of some rows: uncertainties, and whether they agree; [exits, rows]."""

    unsure: Tensor
    agreed: Tensor


class _Imitation:
    """How far the exits' answers are from the model's last: KL in nats, averaged over exits.

    One forward pass of the model, as it is used and without a gradient, serves all exits.
    """

    def __init__(self, model: Model, exits: Exits) -> None:
        self.model, self.exits = model, exits

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch."""
        own, last = self.answers(batch)
        return Loss(forward_kl(own, last.expand_as(own)), batch.size, {})

    def answers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of every exit [exits, rows, classes], and the model's last [rows, classes]."""
        self.model.module.eval()  # no dropout: the trunk does not learn
        with torch.no_grad(), recorded(self.model) as states:
            last = self.model.logits(batch)
        given: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
        }
        reads = self.exits.reads(self.model.config, given)
        own = [self.exits.answers(int(i), states[int(i) + 1], reads) for i in self.exits]
        return torch.stack(own), last

    def judge(self, batches: Sequence[Batch]) -> Any:
        """A function that tells the loss on held-out batches."""

        def score() -> float:
            losses = [self(batch.to(self.model.device), 1.0) for batch in batches]
            total = sum(float(loss.value) * loss.count for loss in losses)
            return total / sum(loss.count for loss in losses)

        return score

    def survey(self, batches: Sequence[Batch], ctx: Context) -> _Survey:
        """How sure and how right the exits are of held-out rows."""
        unsure: list[Tensor] = []
        agreed: list[Tensor] = []
        for batch in batches:
            with inference(self.model.device, ctx.precision):
                own, last = self.answers(batch.to(self.model.device))
            unsure.append(uncertainty(own).cpu())
            agreed.append((own.argmax(-1) == last.argmax(-1)).cpu())
        return _Survey(torch.cat(unsure, 1), torch.cat(agreed, 1))


def _shape(modules: Sequence[ModuleFact]) -> tuple[int, int]:
    """The hidden size, as norms have it, and the number of classes, as the last linear has."""
    norms = (fact for fact in modules if fact.role == "norm" and fact.block is not None)
    width = next(fact.shape[0] for fact in norms if fact.axes == ("hidden",))
    *_, last = (fact for fact in modules if fact.linear and fact.block is None)
    return width, last.shape[0]


def _tell(chosen: Leaving, runs: Sequence[int], ctx: Context) -> None:
    """Put what the threshold does to held-out rows into the report."""
    mean = chosen.mean(runs)
    ctx.note("threshold", chosen.threshold)
    ctx.note("agreement", chosen.agreement)
    ctx.note("mean blocks run", round(mean, 3))
    ctx.note("share of blocks saved", round(1 - mean / runs[-1], 4))
    for run, count in zip(runs, chosen.counts, strict=True):
        ctx.note(f"rows that leave after {run} blocks", count)
    ctx.note("speed", "depends on the texts: those that are sure early take less time")
    if not any(chosen.counts[:-1]):
        ctx.warn(
            "no text leaves early at this threshold. Train the exits longer or on more data, or "
            "raise `lose` or `threshold`"
        )
