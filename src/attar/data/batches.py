"""Batches for training, by their number and so resumable, and held-out batches in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attar.core.keys import seed_of
from attar.core.step import Task
from attar.data.example import Dataset
from attar.data.files import fail
from attar.data.masking import IGNORED, Masker
from attar.data.tokenize import Encoded, check_ids, encode, filler, sequences

PACKED = ("causal-lm", "masked-lm")  # tasks whose texts are joined and cut anew
_WINDOW = 16  # batches among which texts of like length are brought together
_MULTIPLE = 8


@dataclass
class Batch:
    """Rows for the model: `[batch, length]`, labels `[batch]` for classification, embedding.

    Labels are -100 where nothing is judged. For causal language models they equal the inputs
    and are not shifted. Of pairs of texts, `segments`, [batch, length], is 0 in the first and 1
    in the second, and `follows`, [batch], is 0 where the second goes on from the first, else 1.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    segments: torch.Tensor | None = None
    follows: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """How many rows there are."""
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        there = {name: part.to(device) for name, part in vars(self).items() if part is not None}
        return Batch(**there)


class Stream:
    """Shuffled batches without end, each made from its number alone.

    The rows' order within an epoch comes from the seed and the epoch, a row's masks from the
    seed and its place in the stream. So a resumed run sees the batches that an undisturbed one
    sees, and `world` ranks of `batch` rows share out what one rank would see in `world` times
    as many. `rows` counts what there is, `per_epoch` the batches of a single rank in an epoch.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: Any,
        task: Task,
        length: int,
        batch: int,
        seed: int,
        labels: Sequence[str] | None = None,
        limit: int | None = None,
        mask_rate: float = 0.15,
    ) -> None:
        self._rows = _Rows(dataset, tokenizer, task, length, labels, limit, mask_rate)
        self._batch, self._seed = batch, seed
        self._orders: dict[int, torch.Tensor] = {}
        self.rows = len(self._rows)
        self.per_epoch = -(-self.rows // batch)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch that a rank works on in a step."""
        start = (step * world + rank) * self._batch
        places = range(start, start + self._batch)
        numbers = [int(self._order(at // self.rows)[at % self.rows]) for at in places]
        return self._rows.batch(numbers, [seed_of(self._seed, "mask", at) for at in places])

    def check(self, vocabulary: int) -> None:
        """Raise ModelError where a row holds an id outside a model's vocabulary."""
        check_ids(self._rows.tokens, vocabulary)

    def _order(self, epoch: int) -> torch.Tensor:
        if epoch not in self._orders:
            if len(self._orders) > 1:
                self._orders.clear()
            generator = torch.Generator().manual_seed(seed_of(self._seed, "order", epoch))
            order = torch.randperm(self.rows, generator=generator)
            if self._rows.lengths is not None:
                order = grouped(order, self._rows.lengths, self._batch, generator)
            self._orders[epoch] = order
        return self._orders[epoch]


def held_out(
    dataset: Dataset,
    tokenizer: Any,
    task: Task,
    length: int,
    batch: int,
    limit: int | None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Batch]:
    """Batches to judge on: the first `limit` rows in order, always masked in the same places."""
    rows = _Rows(dataset, tokenizer, task, length, labels, limit)
    seeds = [seed_of(seed, "held out", number) for number in range(len(rows))]
    return [
        rows.batch(list(range(len(rows)))[start : start + batch], seeds[start : start + batch])
        for start in range(0, len(rows), batch)
    ]


class _Rows:
    """Tokenized rows of one task, and how they become a batch."""

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: Any,
        task: Task,
        length: int,
        labels: Sequence[str] | None,
        limit: int | None,
        mask_rate: float = 0.15,
    ) -> None:
        self.length, self.pad = length, filler(tokenizer)
        self.lengths: torch.Tensor | None = None
        self.masker = Masker(tokenizer, mask_rate) if task == "masked-lm" else None
        self.tokens: torch.Tensor | list[Encoded]
        if task in PACKED:
            self.tokens = sequences(dataset, tokenizer, length, limit)
            return
        classes = labels if task == "classification" else None
        self.tokens = encode(_first(dataset, limit), tokenizer, length, classes)
        if task == "classification":  # vectors are held against all others of a batch
            self.lengths = torch.tensor([len(row.ids) for row in self.tokens])
        if not self.tokens:
            raise fail(f"data {dataset.name}: it holds no row")

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, numbers: list[int], seeds: list[int]) -> Batch:
        """The rows of these numbers; the seeds are for their masks."""
        if not isinstance(self.tokens, torch.Tensor):
            return self._padded([self.tokens[number] for number in numbers])
        ids = self.tokens[numbers]
        if self.masker is None:
            return Batch(ids, torch.ones_like(ids), ids.clone())
        masked, labels = self.masker.mask(ids, seeds)
        return Batch(masked, torch.ones_like(ids), labels)

    def _padded(self, rows: list[Encoded]) -> Batch:
        longest = max(len(row.ids) for row in rows)
        width = max(longest, min(self.length, -(-longest // _MULTIPLE) * _MULTIPLE))
        ids = torch.full((len(rows), width), self.pad)
        attended = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = torch.tensor(row.ids)
            attended[number, : len(row.ids)] = 1
        labels = [IGNORED if row.label is None else row.label for row in rows]
        return Batch(ids, attended, torch.tensor(labels))


def _first(dataset: Dataset, limit: int | None) -> Dataset:
    if limit is None:
        return dataset
    return Dataset(dataset.name, dataset.examples[:limit], dataset.fingerprint, dataset.labels)


def grouped(
    order: torch.Tensor, lengths: torch.Tensor, batch: int, generator: torch.Generator
) -> torch.Tensor:
    """Bring texts of like length together within windows, the batches of a window shuffled."""
    parts: list[torch.Tensor] = []
    for window in order.split(_WINDOW * batch):
        by_length = window[torch.sort(lengths[window], stable=True).indices]
        batches = list(by_length.split(batch))
        whole = len(batches) - (len(batches[-1]) < batch)  # a short one stays at the end
        turn = torch.randperm(whole, generator=generator).tolist()
        parts += [batches[number] for number in turn] + batches[whole:]
    return torch.cat(parts)
