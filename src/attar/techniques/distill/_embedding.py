"""A signal: how alike the vectors of whole texts are, to the teacher's and to each other."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from attar.layers.exits import Pool
from attar.models.pooling import pooled, pooling_of
from attar.ops.alike import info_nce, similarities_missed, turned
from attar.techniques.distill._hidden import projection
from attar.train.signals import Compared, Sight, Signal
from attar.train.watched import Watched


class EmbeddingSignal(Signal):
    """What of the teacher's vectors the student learns, and how much of each."""

    cosine: float = Field(
        1.0, ge=0, description="weight of 1 - the cosine to the teacher's vector of the same text"
    )
    similarities: float = Field(
        1.0,
        ge=0,
        description="weight of what the cosines between the texts of a batch differ by, squared",
    )
    contrastive: float = Field(
        0.0,
        ge=0,
        description="weight of telling the teacher's vector of a text from those of the others "
        "in the batch (InfoNCE)",
    )
    contrast: float = Field(
        0.05, gt=0, description="temperature that cosines are divided by where they are told apart"
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.cosine or self.similarities or self.contrastive):
            raise ValueError("one of cosine, similarities and contrastive must have weight")
        return self

    @property
    def within_batch(self) -> bool:
        """Whether something is told by the other texts of a batch, or nothing but by them."""
        return not self.cosine or self.contrastive > 0

    def compared(self, student: Sight, teacher: Sight, mask: Tensor) -> Compared:
        """A projection to the teacher's width, where widths differ."""
        own, theirs = student.made.last[mask], teacher.made.last[mask]
        return _Embedding(self, (student, teacher), projection(own.double(), theirs.double()))


class _Embedding(Compared):
    def __init__(self, wanted: EmbeddingSignal, both: tuple[Sight, Sight], turn: nn.Module) -> None:
        super().__init__()
        self.wanted, self.turn = wanted, turn
        self.pools: list[Pool] = [pooling_of(sight.model) for sight in both]

    def forward(self, own: Watched, theirs: Watched, mask: Tensor) -> Tensor:
        one = pooled(own.last, mask, self.pools[0])
        other = pooled(theirs.last, mask, self.pools[1])
        brought, wanted = self.turn(one), self.wanted
        total = torch.zeros((), device=mask.device)
        if wanted.cosine:
            total = total + wanted.cosine * turned(brought, other, mask.any(-1))
        if wanted.similarities:
            total = total + wanted.similarities * similarities_missed(one, other)
        if wanted.contrastive:
            found = info_nce(brought, other, wanted.contrast)
            total = total + wanted.contrastive * found
        return total
