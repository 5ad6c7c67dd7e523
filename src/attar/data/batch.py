"""A batch, and how rows of unequal length become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch

from attar.data.masking import IGNORED
from attar.data.tokenize import Encoded

_MULTIPLE = 8


@dataclass
class Batch:
    """Rows for the model: `[batch, length]`, labels `[batch]` for classification, embedding.

    Labels are -100 where nothing is judged. For causal language models they equal the inputs
    and are not shifted. Of pairs of texts, `segments`, [batch, length], is 0 in the first and 1
    in the second, and `follows`, [batch], is 0 where the second goes on from the first, else 1.
    `media` are images, [batch, channels, height, width], or sounds, [batch, frames, mel bins];
    where they are all that the model takes in, each row has one token, which it never sees.
    `shares`, [batch, classes], are probabilities that were given with the rows: 1 for the label of
    a row that has that alone, 0 throughout for one that has neither.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    segments: torch.Tensor | None = None
    follows: torch.Tensor | None = None
    media: torch.Tensor | None = None
    shares: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """How many rows there are."""
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device, with all tensors and batches that it holds."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        held = {
            name: part for name, part in parts.items() if isinstance(part, torch.Tensor | Batch)
        }
        return replace(self, **{name: part.to(device) for name, part in held.items()})


def padded(rows: Sequence[Encoded], length: int, pad: int) -> Batch:
    """Rows of tokens side by side, as wide as a multiple of 8 that holds the longest."""
    longest = max(len(row.ids) for row in rows)
    width = max(longest, min(length, -(-longest // _MULTIPLE) * _MULTIPLE))
    ids = torch.full((len(rows), width), pad)
    attended = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        attended[number, : len(row.ids)] = 1
    labels = torch.tensor([IGNORED if row.label is None else row.label for row in rows])
    return Batch(ids, attended, labels, shares=_shares(rows, labels))


def _shares(rows: Sequence[Encoded], labels: torch.Tensor) -> torch.Tensor | None:
    """Probabilities of the classes, [batch, classes]; None where no row came with any."""
    classes = max(len(row.shares or ()) for row in rows)
    if not classes:
        return None
    found = torch.zeros(len(rows), classes)
    for share, row, label in zip(found, rows, labels.tolist(), strict=True):
        if row.shares is not None:
            share.copy_(torch.tensor(row.shares))
        elif label != IGNORED:
            share[label] = 1.0
    return found
