"""Batches of several datasets in turn, each of one dataset alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attar.core.keys import seed_of
from attar.data.batches import Batch, Shuffled


@dataclass(kw_only=True)
class TurnBatch(Batch):
    """A batch, and the number of the dataset that it is of."""

    source: int


class Turns:
    """Batches of several streams, in an order that comes from the seed and the epoch.

    In an epoch each stream has as many turns as it has batches, so every row counts the same.
    """

    def __init__(self, streams: Sequence[Shuffled], seed: int) -> None:
        self._streams, self._seed = streams, seed
        self._counts = torch.tensor([stream.per_epoch for stream in streams])
        self.per_epoch = int(self._counts.sum())
        self._order: tuple[int, torch.Tensor] | None = None

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TurnBatch:
        """The batch that a rank works on in a step."""
        epoch, place = divmod(step * world + rank, self.per_epoch)
        sources = self._sources(epoch)
        source = int(sources[place])
        before = int((sources[:place] == source).sum())
        found = self._streams[source].batch(epoch * int(self._counts[source]) + before)
        return TurnBatch(found.input_ids, found.attention_mask, found.labels, source=source)

    def _sources(self, epoch: int) -> torch.Tensor:
        """Whose turn it is, all through an epoch."""
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of(self._seed, "turns", epoch))
            order = torch.randperm(self.per_epoch, generator=generator)
            sources = torch.arange(len(self._streams)).repeat_interleave(self._counts)
            self._order = epoch, sources[order]
        return self._order[1]
