"""Several teachers that answer as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from attar.data.batches import Batch
from attar.models.model import Model
from attar.ops.chunked import Side
from attar.ops.divergence import IGNORED, log_probabilities
from attar.ops.ensemble import best, certainty, mixture
from attar.train.losses import judged_labels, teaching

Combined = Literal["mean", "confidence", "best"]
_PIECE = 512  # positions whose logits exist at a time


class Ensemble:
    """What several teachers say of a batch, as one side whose softmax is their mixture.

    Each teacher goes over a batch in turn, and of each only what its head reads is kept: of
    language models hidden states. Logits exist a few positions at a time. The mixture is of
    distributions at `temperature`, and is right for a divergence at that one alone. What is
    `seen` of them on their way may be in the student's graph.
    """

    def __init__(
        self,
        model: Model,
        teachers: Sequence[Model],
        combined: Combined,
        temperature: float,
        seen: bool = False,
    ) -> None:
        self.model, self.teachers, self.temperature = model, teachers, temperature
        self.combined: Combined = combined
        self.seen = seen

    def __call__(self, batch: Batch) -> Side:
        """All teachers at the judged positions of a batch."""
        temperature = self.temperature
        sides = [teaching(teacher, batch, self.seen) for teacher in self.teachers]
        weights = self._weights(sides, judged_labels(self.model, batch))
        given = [*(each.hidden for each in sides), *weights]
        widths = [each.shape[-1] for each in given]

        def answers(some: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            parts = some.split(widths, -1)
            for number, each in enumerate(sides):
                logits = each.head(parts[number].to(each.hidden.dtype))
                logs = log_probabilities(logits, temperature)
                yield logs, parts[-1][:, number] if weights else certainty(logs)

        return Side(lambda some: temperature * mixture(answers(some)), _beside(given))

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
