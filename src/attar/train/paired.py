"""What a batch costs a student whose teacher has tokens of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from attar.data.batches import Batch
from attar.data.paired import PairedBatch
from attar.models.model import Model
from attar.ops.chunked import Side
from attar.ops.divergence import log_probabilities
from attar.ops.piecewise import piecewise
from attar.ops.spans import Common, merged_spans, sorted_spans, spelled
from attar.train.losses import Loss, averaged, judged_labels, side, states, teaching

Matching = Literal["merged", "sorted"]
_PIECE = 128  # positions whose logits exist at a time, of either model


class PairedObjective:
    """weight x distance over spans + (1 - weight) x the student's own loss.

    The distance is a mean over spans, the student's own loss one over its tokens. `weight` tells
    the weight at a share of the training done, from 0 to 1.
    """

    def __init__(
        self,
        model: Model,
        teacher: Model,
        common: Common,
        matching: Matching,
        weight: Callable[[float], float],
    ) -> None:
        self.model, self.teacher = model, teacher
        self.common = common.to(model.device)
        self.matching: Matching = matching
        self.weight = weight

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch."""
        paired = cast("PairedBatch", batch)
        own = side(self.model, states(self.model, paired))
        theirs = teaching(self.teacher, paired.theirs)
        labels = judged_labels(self.model, paired)
        their_labels = judged_labels(self.teacher, paired.theirs)
        pieces = _pieces(paired, len(labels), self.common.own.device)
        spans, tokens = len(paired.own_spans), len(labels)
        weight = self.weight(progress)

        def loss(hidden: Tensor, number: int) -> Tensor:
            piece = pieces[number]
            logs = log_probabilities(own.head(hidden), 1.0)
            here = labels[piece.own]
            task = -logs.gather(-1, here.unsqueeze(-1)).sum()
            each = self._apart(logs, here, theirs, their_labels, piece)
            apart = sum(each, task.new_zeros(()))
            total = weight * apart / max(spans, 1) + (1 - weight) * task / tokens
            return torch.stack([total, task, *each])

        total, task, *each = piecewise(loss, own.hidden, own.weights, [p.own for p in pieces])
        names = ("shared", "others") if self.matching == "merged" else ("sorted",)
        parts = {"task": (float(task) / tokens, tokens)}
        for name, value in zip(names, each, strict=True):
            parts[name] = (float(value) / max(spans, 1), spans)
        return Loss(total, tokens, parts)

    def score(self, batches: Sequence[Batch]) -> Callable[[], float]:
        """A function that tells the loss on held-out batches, its weight as it is half way."""
        return averaged(self, batches, self.model.device)

    def _apart(
        self, logs: Tensor, labels: Tensor, theirs: Side, their_labels: Tensor, piece: _Piece
    ) -> list[Tensor]:
        """The distance over the spans of a piece, in its parts: sums."""
        names = 2 if self.matching == "merged" else 1
        if not len(piece.own_spans):
            return [logs.new_zeros(())] * names
        with torch.no_grad():
            other = log_probabilities(theirs.head(theirs.hidden[piece.theirs]), 1.0)
            theirs_there = spelled(other, their_labels[piece.theirs], *piece.their_spans.unbind(1))
        mine = spelled(logs, labels, *piece.own_spans.unbind(1))
        if self.matching == "sorted":
            return [sorted_spans(mine, theirs_there).sum()]
        found = merged_spans(mine, theirs_there, self.common)
        return [found.shared.sum(), found.others.sum()]


@dataclass(frozen=True)
class _Piece:
    """Positions of either model that are looked at together, and the spans inside them."""

    own: slice
    theirs: slice
    own_spans: Tensor
    their_spans: Tensor


def _pieces(batch: PairedBatch, positions: int, device: torch.device) -> list[_Piece]:
    """All of the student's positions in pieces that cut through no span."""
    own, theirs = batch.own_spans.cpu(), batch.their_spans.cpu()
    cuts: list[int] = []  # after how many spans
    begun = (0, 0)
    for number, (mine, yours) in enumerate(zip(own.tolist(), theirs.tolist(), strict=True)):
        if mine[1] - begun[0] > _PIECE or yours[1] - begun[1] > _PIECE:
            cuts.append(number)
            begun = mine[0], yours[0]
    pieces: list[_Piece] = []
    start = 0
    for first, last in zip([0, *cuts], [*cuts, len(own)], strict=True):
        end = positions if last == len(own) else int(own[last, 0])
        some, others = own[first:last], theirs[first:last]
        at = int(others[0, 0]) if len(others) else 0
        stop = int(others[-1, 1]) if len(others) else 0
        pieces.append(
            _Piece(
                slice(start, end),
                slice(at, stop),
                (some - start).to(device),
                (others - at).to(device),
            )
        )
        start = end
    return [piece for piece in pieces if piece.own.stop > piece.own.start]
