"""What a batch costs a student of several teachers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from attar.data.batches import Batch
from attar.models.model import Model
from attar.ops.chunked import Mix, Side, chunked
from attar.ops.divergence import IGNORED, log_probabilities
from attar.ops.ensemble import best, certainty, mixture
from attar.train.losses import Loss, averaged, judged_labels, side, states, teaching

Combined = Literal["mean", "confidence", "best"]
_PIECE = 512  # positions whose logits exist at a time


class EnsembleObjective:
    """The mix of the divergence from several teachers, taken as one, and the task's own loss.

    Each teacher goes over a batch in turn, and of each only what its head reads is kept: of
    language models hidden states. Logits exist a few positions at a time.
    """

    def __init__(
        self,
        model: Model,
        teachers: Sequence[Model],
        combined: Combined,
        mix: Callable[[float], Mix],
    ) -> None:
        self.model, self.teachers, self.mix = model, teachers, mix
        self.combined: Combined = combined

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch."""
        mix, labels = self.mix(progress), judged_labels(self.model, batch)
        theirs = self.teaching(batch, labels, mix.temperature)
        losses = chunked(side(self.model, states(self.model, batch)), theirs, labels, mix)
        parts = {"divergence": (float(losses.divergence), len(labels))}
        labeled = int((labels != IGNORED).sum())
        if labeled:
            parts["task"] = (float(losses.task), labeled)
        return Loss(losses.total, len(labels), parts)

    def teaching(self, batch: Batch, labels: Tensor, temperature: float) -> Side:
        """All teachers as one side, whose softmax at this temperature is their mixture."""
        sides = [teaching(teacher, batch) for teacher in self.teachers]
        weights = self._weights(sides, labels)
        given = [*(each.hidden for each in sides), *weights]
        widths = [each.shape[-1] for each in given]

        def answers(some: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            parts = some.split(widths, -1)
            for number, each in enumerate(sides):
                logits = each.head(parts[number].to(each.hidden.dtype))
                logs = log_probabilities(logits, temperature)
                yield logs, parts[-1][:, number] if weights else certainty(logs)

        return Side(lambda some: temperature * mixture(answers(some)), _beside(given))

    def score(self, batches: Sequence[Batch]) -> Callable[[], float]:
        """A function that tells the loss on held-out batches, always with the same weights."""
        return averaged(self, batches, self.model.device)

    @torch.no_grad()
    def _weights(self, sides: Sequence[Side], labels: Tensor) -> list[Tensor]:
        """[positions, teachers]; none where they follow from the answers themselves."""
        if self.combined == "confidence":
            return []
        if self.combined == "mean":
            return [torch.ones(len(labels), len(sides), device=labels.device)]
        found = [
            best(
                (log_probabilities(each.head(each.hidden[at]), 1.0) for each in sides),
                labels[at],
                IGNORED,
            )
            for at in (slice(n, n + _PIECE) for n in range(0, len(labels), _PIECE))
        ]
        return [torch.cat(found)]


def _beside(parts: Sequence[Tensor]) -> Tensor:
    """Columns beside each other, in a dtype that holds them all."""
    wide = reduce(torch.promote_types, (part.dtype for part in parts))
    return torch.cat([part.to(wide) for part in parts], -1)
