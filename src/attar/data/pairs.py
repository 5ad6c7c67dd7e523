"""Rows for pretraining from raw text: pairs of which half belong together, or single stretches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.core.keys import seed_of
from attar.data.batches import Batch, grouped
from attar.data.example import Dataset
from attar.data.files import fail
from attar.data.masking import Flags, Ids, Masker, drawing
from attar.data.pieces import Pieces, Run
from attar.data.tokenize import check_ids, filler
from attar.errors import ModelError

_MULTIPLE = 8  # batches are as wide as a multiple of it


@dataclass(frozen=True)
class Rules:
    """How rows are made: pairs or single stretches, and which tokens have to be told."""

    pairs: bool = True
    mask_rate: float = 0.15
    whole_words: bool = False


@dataclass(frozen=True)
class _Span:
    """The pieces of a document from `first` to `end`."""

    document: int
    first: int
    end: int


@dataclass(frozen=True)
class _Row:
    """Tokens before any is masked, and where the second text begins, and what it is.

    starts: where a word begins, where words count. generator: what draws the masks.
    """

    ids: Ids
    starts: Flags | None
    second: int
    follows: int
    generator: np.random.Generator


class Pairs:
    """Shuffled batches without end, each made from its number alone.

    An epoch goes once through all stretches of text. Where a stretch is cut in two, what follows
    the first part in the other half of the pairs, and what is masked, are drawn anew each time,
    from the seed and the place in the stream. What does not follow is from another document, and
    about as long as what does. `rows` counts the stretches, `per_epoch` the batches of a single
    rank in an epoch.
    """

    def __init__(
        self, dataset: Dataset, tokenizer: Any, length: int, batch: int, seed: int, rules: Rules
    ) -> None:
        self._paired, self._whole_words = rules.pairs, rules.whole_words
        self._batch, self._seed = batch, seed
        self._masker, self._pad = Masker(tokenizer, rules.mask_rate), filler(tokenizer)
        self._begin, self._close = _marks(tokenizer)
        self._mark: Flags = np.ones(1, dtype=np.bool_)
        self._length, self._room = length, length - (3 if rules.pairs else 2)
        longest = self._room // 2 if rules.pairs else self._room
        self._pieces = Pieces(dataset, tokenizer, longest, rules.pairs, rules.whole_words)
        self._spans = list(self._cut(dataset.name))
        sizes = [self._pieces.size(span.first, span.end) for span in self._spans]
        self._sizes = torch.tensor(sizes).clamp(max=self._room)
        self._orders: dict[int, Tensor] = {}
        self.rows = len(self._spans)
        self.per_epoch = -(-self.rows // batch)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch that a rank works on in a step."""
        start = (step * world + rank) * self._batch
        places = range(start, start + self._batch)
        numbers = [int(self._order(at // self.rows)[at % self.rows]) for at in places]
        return self._made(numbers, [seed_of(self._seed, "pair", at) for at in places])

    def held_out(self, limit: int) -> list[Batch]:
        """Batches to judge on: `limit` rows at even distances, always made alike."""
        count = min(limit, self.rows)
        numbers = [place * self.rows // count for place in range(count)]
        seeds = [seed_of(0, "held out", number) for number in numbers]
        parts = [slice(start, start + self._batch) for start in range(0, count, self._batch)]
        return [self._made(numbers[part], seeds[part]) for part in parts]

    def check(self, vocabulary: int) -> None:
        """Raise ModelError where a text holds an id outside a model's vocabulary."""
        check_ids(torch.from_numpy(self._pieces.ids), vocabulary)

    def _cut(self, name: str) -> Iterator[_Span]:
        """Stretches that fill a row, or the rest of a document; of pairs, two pieces or more."""
        least, documents = 2 if self._paired else 1, self._pieces.documents
        if len(documents) < least:
            raise fail(
                f"data {name} holds {len(documents)} documents, and what does not follow a text "
                "is taken from another. Put each document into a file or a row of JSONL of its "
                "own, or set next_sentence: 0"
            )
        if all(last - first < least for first, last in documents):
            raise fail(f"data {name}: no document has two parts to pair. Give longer texts")
        for number, (first, last) in enumerate(documents):
            while last - first >= least:
                end = first + least
                while end < last and self._pieces.size(first, end) < self._room:
                    end += 1
                if last - end < least:
                    end = last  # alone, what is left would make no row
                yield _Span(number, first, end)
                first = end

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            if len(self._orders) > 1:
                self._orders.clear()
            generator = torch.Generator().manual_seed(seed_of(self._seed, "order", epoch))
            order = torch.randperm(self.rows, generator=generator)
            self._orders[epoch] = grouped(order, self._sizes, self._batch, generator)
        return self._orders[epoch]

    def _made(self, numbers: Sequence[int], seeds: Sequence[int]) -> Batch:
        rows = [self._row(number, seed) for number, seed in zip(numbers, seeds, strict=True)]
        sizes = [len(row.ids) for row in rows]
        longest = max(sizes)
        width = max(longest, min(self._length, -(-longest // _MULTIPLE) * _MULTIPLE))
        ids = np.full((len(rows), width), self._pad)
        attended, segments = np.zeros_like(ids), np.zeros_like(ids)
        for at, (row, size) in enumerate(zip(rows, sizes, strict=True)):
            ids[at, :size], attended[at, :size] = row.ids, 1
            segments[at, row.second : size] = 1
        generators, starts = [row.generator for row in rows], [row.starts for row in rows]
        masked, labels = self._masker.rows(ids, sizes, generators, starts)
        parts = (masked, attended, labels, segments)
        ids, attended, labels, segments = map(torch.from_numpy, parts)
        if not self._paired:
            return Batch(ids, attended, labels)
        return Batch(ids, attended, labels, segments, torch.tensor([row.follows for row in rows]))

    def _row(self, number: int, seed: int) -> _Row:
        span, generator = self._spans[number], drawing(seed)
        runs, follows = [self._pieces.run(span.first, span.end).cut(0, self._room)], 0
        if self._paired:
            cut = span.first + 1 + _drawn(span.end - span.first - 1, generator)
            follows = _drawn(2, generator)
            runs = self._pair(span, cut, self._other(span, cut, generator) if follows else None)
        ids, starts = [self._begin], [self._mark]
        for run in runs:
            ids += [run.ids, self._close]
            starts += [run.starts, self._mark]
        words = np.concatenate(starts) if self._whole_words else None
        return _Row(np.concatenate(ids), words, len(runs[0]) + 2, follows, generator)

    def _pair(self, span: _Span, cut: int, other: Run | None) -> list[Run]:
        """What comes before the cut, and what comes after it or another text; cut to the room.

        The first loses its beginning and the second its end, whichever the second is.
        """
        first = self._pieces.run(span.first, cut)
        wanted = min(self._pieces.size(cut, span.end), self._room // 2)
        first = first.cut(max(0, len(first) - (self._room - wanted)), len(first))
        second = other or self._pieces.run(cut, span.end)
        return [first, second.cut(0, self._room - len(first))]

    def _other(self, span: _Span, cut: int, generator: np.random.Generator) -> Run:
        """A text from another document, about as long as what follows the cut."""
        wanted, documents = self._pieces.size(cut, span.end), self._pieces.documents
        number = _drawn(len(documents) - 1, generator)
        first, last = documents[number + (number >= span.document)]
        start = first + _drawn(last - first, generator)
        end, size = start + 1, self._pieces.size
        while end < last and size(start, end) + size(end, end + 1) / 2 <= wanted:
            end += 1
        return self._pieces.run(start, end)


def _marks(tokenizer: Any) -> tuple[Ids, Ids]:
    """What stands before a row, and what closes each text."""
    begin, close = tokenizer.cls_token_id, tokenizer.sep_token_id
    if begin is None or close is None:
        raise ModelError(
            "the tokenizer has no tokens to begin a row and to close a text ([CLS] and [SEP] of "
            "BERT). Give a model that was made for masked-lm"
        )
    return np.array([begin]), np.array([close])


def _drawn(count: int, generator: np.random.Generator) -> int:
    """A number below `count`."""
    return int(generator.integers(count))
