"""Batches for training, by their number and so resumable, and held-out batches in order."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import chain
from typing import Any, Protocol

import torch

from attar.core.keys import seed_of
from attar.core.step import Task
from attar.data.batch import Batch, padded
from attar.data.example import Dataset
from attar.data.files import fail
from attar.data.masking import IGNORED, Masker
from attar.data.media import check_medium
from attar.data.media_batches import MediaRows, medium_of
from attar.data.tokenize import Encoded, check_ids, encode, sequences
from attar.models.padding import filler

__all__ = ["IGNORED", "PACKED", "Batch", "Rows", "Shuffled", "Stream", "grouped", "held_out"]

PACKED = ("causal-lm", "masked-lm")  # tasks whose texts are joined and cut anew
_WINDOW = 16  # batches among which texts of like length are brought together


class Rows(Protocol):
    """Rows by their number; `lengths` where batches had better hold rows of like length."""

    lengths: torch.Tensor | None

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batch(self, numbers: list[int], seeds: list[int]) -> Batch:
        """The rows of these numbers; the seeds are for what is random in each."""
        ...


class Shuffled:
    """Shuffled batches without end, each made from its number alone.

    The rows' order within an epoch comes from the seed and the epoch, a row's masks from the
    seed and its place in the stream. So a resumed run sees the batches that an undisturbed one
    sees, and `world` ranks of `batch` rows share out what one rank would see in `world` times
    as many. `rows` counts what there is, `per_epoch` the batches of a single rank in an epoch.
    """

    def __init__(self, rows: Rows, batch: int, seed: int) -> None:
        self._rows, self._batch, self._seed = rows, batch, seed
        self._orders: dict[int, torch.Tensor] = {}
        self.rows = len(rows)
        self.per_epoch = -(-self.rows // batch)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch that a rank works on in a step."""
        start = (step * world + rank) * self._batch
        places = range(start, start + self._batch)
        numbers = [int(self._order(at // self.rows)[at % self.rows]) for at in places]
        return self._rows.batch(numbers, [seed_of(self._seed, "mask", at) for at in places])

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


class Stream(Shuffled):
    """Shuffled batches of a dataset."""

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
        self._own = _rows_of(dataset, tokenizer, task, length, labels, limit, mask_rate)
        super().__init__(self._own, batch, seed)
        self.length = length

    def check(self, vocabulary: int) -> None:
        """Raise ModelError where a row holds, or a mask may draw, an id outside a vocabulary."""
        check_ids(self._own.tokens, vocabulary)
        masker = getattr(self._own, "masker", None)
        if masker is not None:
            check_ids([masker.vocabulary - 1], vocabulary)

    def with_some_of(self, others: Sequence[Stream], share: float) -> Shuffled:
        """A stream that holds rows of others too, drawn evenly, so many that they are this share.

        There are as many as the others have where that is fewer, and one of each at least.
        """
        wanted = max(1, round(share / (1 - share) * self.rows / len(others)))
        drawn: list[Any] = []
        for number, other in enumerate(others):
            generator = torch.Generator().manual_seed(seed_of(self._seed, "drawn", number))
            drawn.append(other._own.some(torch.randperm(other.rows, generator=generator)[:wanted]))
        return Shuffled(self._own.joined(drawn), self._batch, self._seed)


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
    rows = _rows_of(dataset, tokenizer, task, length, labels, limit)
    seeds = [seed_of(seed, "held out", number) for number in range(len(rows))]
    return [
        rows.batch(list(range(len(rows)))[start : start + batch], seeds[start : start + batch])
        for start in range(0, len(rows), batch)
    ]


def _rows_of(
    dataset: Dataset,
    tokenizer: Any,
    task: Task,
    length: int,
    labels: Sequence[str] | None,
    limit: int | None,
    *rate: float,
) -> _Rows | MediaRows:
    """Rows of what the model takes in: of texts, or of files."""
    if medium_of(tokenizer) is not None:
        return MediaRows(_first(dataset, limit), tokenizer, task, length, labels)
    check_medium(dataset, None)
    return _Rows(dataset, tokenizer, task, length, labels, limit, *rate)


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

    def some(self, numbers: torch.Tensor) -> _Rows:
        """The rows of these numbers, as rows."""
        if isinstance(self.tokens, torch.Tensor):
            return self._with(self.tokens[numbers])
        return self._with([self.tokens[number] for number in numbers.tolist()])

    def joined(self, others: Sequence[_Rows]) -> _Rows:
        """These rows, and after them others of the same model and length."""
        every = [self.tokens, *(other.tokens for other in others)]
        tensors = [tokens for tokens in every if isinstance(tokens, torch.Tensor)]
        lists = [tokens for tokens in every if not isinstance(tokens, torch.Tensor)]
        return self._with(torch.cat(tensors) if tensors else list(chain.from_iterable(lists)))

    def _with(self, tokens: torch.Tensor | list[Encoded]) -> _Rows:
        rows = copy(self)
        rows.tokens = tokens
        if self.lengths is not None and not isinstance(tokens, torch.Tensor):
            rows.lengths = torch.tensor([len(row.ids) for row in tokens])
        return rows

    def batch(self, numbers: list[int], seeds: list[int]) -> Batch:
        """The rows of these numbers; the seeds are for their masks."""
        if not isinstance(self.tokens, torch.Tensor):
            return padded([self.tokens[number] for number in numbers], self.length, self.pad)
        ids = self.tokens[numbers]
        if self.masker is None:
            return Batch(ids, torch.ones_like(ids), ids.clone())
        masked, labels = self.masker.mask(ids, seeds)
        return Batch(masked, torch.ones_like(ids), labels)


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
