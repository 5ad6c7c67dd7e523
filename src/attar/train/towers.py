"""What a batch costs two towers: how badly images and texts match, and a teacher's matching."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.data.batches import Batch
from attar.models.media import Pair, paired
from attar.models.model import Model
from attar.ops.contrastive import (
    contrastive,
    interactive,
    relations,
    similarities,
    vectors_missed,
)
from attar.train.losses import Loss, averaged

NAME = "turns"  # of the submodule with the linears to the teacher's width


@dataclass(frozen=True)
class Weights:
    """What each part of the loss is multiplied with; the parts are those of `ops.contrastive`."""

    task: float = 1.0
    relations: float = 0.0
    features: float = 0.0
    interactive: float = 0.0


class Matching:
    """The loss of a model of two towers on a batch: a mean over its rows."""

    def __init__(
        self,
        model: Model,
        weights: Weights,
        teacher: Model | None = None,
        turns: nn.ModuleDict | None = None,
    ) -> None:
        self.model, self.weights, self.teacher, self.turns = model, weights, teacher, turns

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch."""
        own, same = paired(self.model, batch), same_texts(batch)
        scores = similarities(own.seen, own.read, own.scale)
        found = {"task": (self.weights.task, contrastive(scores, same))}
        if self.teacher is not None:
            with torch.no_grad():
                theirs = paired(self.teacher, batch)
            found |= self._toward(theirs, own, scores, same)
        total = sum((weight * value for weight, value in found.values()), scores.new_zeros(()))
        parts = {name: (float(value.detach()), batch.size) for name, (_, value) in found.items()}
        return Loss(total, batch.size, parts)

    def score(self, batches: Sequence[Batch]) -> Callable[[], float]:
        """A function that tells the loss on held-out batches."""
        return averaged(self, batches, self.model.device)

    def _toward(
        self, theirs: Pair, own: Pair, scores: Tensor, same: Tensor
    ) -> dict[str, tuple[float, Tensor]]:
        """The parts that hold the student against its teacher, and their weights."""
        weights, found = self.weights, dict[str, tuple[float, Tensor]]()
        other = theirs.seen, theirs.read
        if weights.relations:
            there = similarities(*other, theirs.scale)
            found["relations"] = weights.relations, relations(scores, there)
        if weights.features or weights.interactive:
            brought = turned(self.turns, own)
            found["features"] = weights.features, vectors_missed(brought, other)
            if weights.interactive:
                value = interactive(brought, other, own.scale, same)
                found["interactive"] = weights.interactive, value
        return found


def same_texts(batch: Batch) -> Tensor:
    """[batch, batch], True where two rows have the same text."""
    ids = batch.input_ids.masked_fill(batch.attention_mask == 0, -1)
    return (ids[:, None] == ids[None]).all(-1)


def turned(turns: nn.ModuleDict | None, own: Pair) -> tuple[Tensor, Tensor]:
    """A student's vectors as they are held against a teacher's, of length 1."""
    if turns is None:
        return own.seen, own.read
    seen, read = turns["seen"](own.seen), turns["read"](own.read)
    return functional.normalize(seen, dim=-1), functional.normalize(read, dim=-1)


@contextmanager
def matching(student: Model, teacher: Model, weights: Weights, batch: Batch) -> Iterator[Matching]:
    """The loss toward a teacher; linears to its width, where it has another, are trained too."""
    batch = batch.to(student.device)
    with torch.no_grad():
        own, theirs = paired(student, batch), paired(teacher, batch)
    widths = own.seen.shape[1], theirs.seen.shape[1]
    if widths[0] == widths[1] or not (weights.features or weights.interactive):
        yield Matching(student, weights, teacher)
        return
    turns = nn.ModuleDict({name: nn.Linear(*widths, bias=False) for name in ("seen", "read")})
    student.module.add_module(NAME, turns.to(student.device))
    try:
        yield Matching(student, weights, teacher, turns)
    finally:
        del student.module._modules[NAME]
