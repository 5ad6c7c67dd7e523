"""The texts of held-out data as classes of its images: what two towers are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attar.data.batches import Batch
from attar.models.media import paired
from attar.models.model import Model


@dataclass(frozen=True)
class Texts:
    """The different texts of some batches, numbered as they first come.

    labels: each row's number, [rows]; first: the row that each comes in first, [texts].
    """

    labels: Tensor
    first: Tensor

    def choices(self, vectors: Sequence[Tensor]) -> Tensor:
        """Logits of each image for each text, [rows, texts].

        vectors: those of each batch, as `of_both_towers` gives them.
        """
        seen, read = torch.cat(list(vectors), 1)
        return seen @ read[self.first.to(read.device)].t()


def of_both_towers(model: Model, batch: Batch) -> Tensor:
    """Vectors of images, times what makes logits of cosines, and of texts: [2, batch, width]."""
    pair = paired(model, batch)
    return torch.stack([pair.scale * pair.seen, pair.read])


def texts_of(batches: Sequence[Batch]) -> Texts:
    """The different texts of these batches, whatever pads them."""
    numbers: dict[tuple[int, ...], int] = {}
    labels: list[int] = []
    first: list[int] = []
    for batch in batches:
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
            text = tuple(ids[mask.bool()].tolist())
            if text not in numbers:
                numbers[text] = len(numbers)
                first.append(len(labels))
            labels.append(numbers[text])
    return Texts(torch.tensor(labels), torch.tensor(first))
