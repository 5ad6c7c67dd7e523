"""What a teacher says of texts: classes, and how likely it finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attar.core.context import Context
from attar.data.batches import IGNORED, Batch
from attar.data.example import Dataset, Example
from attar.data.tokenize import encode
from attar.errors import UserError
from attar.models.model import Model, inference
from attar.models.padding import filler
from attar.models.places import room_for
from attar.train.writing import nothing

_ROWS = 256  # positions whose logits over the vocabulary exist at a time


@dataclass(frozen=True)
class Asked:
    """A model that texts are put before: so many at a time, cut to so many tokens."""

    model: Model
    ctx: Context
    batch: int
    length: int

    @property
    def room(self) -> int:
        """How many tokens a text is cut to: `length`, or the positions that there are."""
        return room_for(self.model, self.length)

    def classes(self, texts: Sequence[str]) -> Tensor:
        """The probability of every class, [texts, classes]; of a classifier."""
        if self.model.task != "classification":
            raise UserError(f"a model for {self.model.task} names no class. Take a classifier")
        rows = Dataset("", [Example(text) for text in texts], "")
        ids = [row.ids for row in encode(rows, self.model.tokenizer, self.room, None)]
        found: list[Tensor] = []
        for part in self._parts(ids):
            with inference(self.ctx.device, self.ctx.precision):
                logits = self.model.logits(self._padded(part))
            found.append(logits.float().softmax(-1).cpu())
        return torch.cat(found) if found else torch.zeros(0, len(self.model.labels))

    def likeliest(self, texts: Sequence[str]) -> list[str]:
        """The class of each text."""
        return [self.model.labels[best] for best in self.classes(texts).argmax(-1).tolist()]

    def sure(
        self, texts: Sequence[str], labels: Sequence[str | None], confidence: float
    ) -> list[bool]:
        """Whether each text's likeliest class has the probability, and is its label if it has one.

        Raises UserError for a label that is no class of the model's.
        """
        classes = list(self.model.labels)
        strange = sorted({label for label in labels if label is not None} - {*classes})
        if strange:
            raise UserError(
                f"the teacher's classes are {', '.join(classes)}, and the data has "
                f"{', '.join(strange)}. Take a teacher that was made for these"
            )
        found: list[bool] = []
        for label, shares in zip(labels, self.classes(texts), strict=True):
            best = int(shares.argmax())
            found.append(float(shares[best]) >= confidence and label in (None, classes[best]))
        return found

    def nats(self, texts: Sequence[str]) -> list[float]:
        """How unlikely each text is, in nats a token, to a causal language model."""
        tokenizer = self.model.tokenizer
        start = nothing(self.model)
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        room = room_for(self.model, self.length + len(start)) - len(start)
        ids = [row[:room] or start for row in ids]
        totals = self.likelihoods([(start, row) for row in ids])
        return [-total / len(row) for total, row in zip(totals, ids, strict=True)]

    def likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """The log-probability of tokens after others, summed, of a causal language model."""
        found: list[float] = []
        for part in self._parts(pairs):
            batch = self._padded([before + after for before, after in part])
            places = [
                (row, len(before) - 1 + step)
                for row, (before, after) in enumerate(part)
                for step in range(len(after))
            ]
            wanted = torch.tensor([token for _, after in part for token in after])
            rows, steps = (torch.tensor(each) for each in zip(*places, strict=True))
            with inference(self.ctx.device, self.ctx.precision):
                states = self.model.hidden(batch)[rows, steps]
                known = torch.cat(
                    [
                        self.model.head(one).float().log_softmax(-1).cpu().gather(1, token)
                        for one, token in zip(
                            states.split(_ROWS), wanted[:, None].split(_ROWS), strict=True
                        )
                    ]
                )[:, 0]
            sums = torch.zeros(len(part)).index_add_(0, rows, known)
            found += sums.tolist()
        return found

    def _parts(self, items: Sequence) -> list[Sequence]:  # pyright: ignore[reportMissingTypeArgument]
        return [items[at : at + self.batch] for at in range(0, len(items), self.batch)]

    def _padded(self, rows: Sequence[list[int]]) -> Batch:
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), filler(self.model.tokenizer))
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        return Batch(ids, mask, torch.full((len(rows),), IGNORED)).to(self.model.device)
