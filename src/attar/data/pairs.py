"""Rows for pretraining from raw text: pairs of which half belong together, or single stretches."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attar.core.keys import seed_of
from attar.data.batches import Batch, grouped
from attar.data.example import Dataset
from attar.data.files import fail
from attar.data.masking import Draws, Flags, Floats, Ids, Masker
from attar.data.pieces import Pieces
from attar.data.splitmix import Keys, below, bits, uniform
from attar.data.tokenize import check_ids
from attar.errors import ModelError
from attar.models.padding import filler

_MULTIPLE = 8  # batches are as wide as a multiple of it
_TEXTS = 4  # numbers that are drawn for the texts of a pair; those for masks come after them


@dataclass(frozen=True)
class Rules:
    """How rows are made: pairs or single stretches, and which tokens have to be told."""

    pairs: bool = True
    mask_rate: float = 0.15
    whole_words: bool = False


@dataclass(frozen=True)
class _Texts:
    """Of rows, which tokens their texts have, and whether the second is of another document.

    begins, ends: [rows, texts], numbers of tokens. follows: [rows].
    """

    begins: Ids
    ends: Ids
    follows: Ids


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
        marks = _marks(tokenizer)
        self._length, self._room = length, length - (3 if rules.pairs else 2)
        longest = self._room // 2 if rules.pairs else self._room
        pieces = Pieces(dataset, tokenizer, longest, rules.pairs, rules.whole_words)
        self._bounds, self._documents = pieces.bounds, pieces.documents
        self._middles = pieces.bounds[:-1] + pieces.bounds[1:]  # of each piece, twice
        self._ids = np.append(pieces.ids, marks)
        self._starts = np.append(pieces.starts, [True, True])
        self._spans = np.array(list(self._cut(dataset.name)))
        sizes = self._bounds[self._spans[:, 2]] - self._bounds[self._spans[:, 1]]
        self._sizes = torch.from_numpy(sizes).clamp(max=self._room)
        self._orders: dict[int, Ids] = {}
        self.rows = len(self._spans)
        self.per_epoch = -(-self.rows // batch)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch that a rank works on in a step."""
        start = (step * world + rank) * self._batch
        places = range(start, start + self._batch)
        numbers = [self._order(at // self.rows)[at % self.rows] for at in places]
        keys = bits(np.uint64(seed_of(self._seed, "pair")), np.array(places))
        return self._made(np.array(numbers), keys)

    def held_out(self, limit: int) -> list[Batch]:
        """Batches to judge on: `limit` rows at even distances, always made alike."""
        count = min(limit, self.rows)
        numbers = np.arange(count) * self.rows // count
        keys = bits(np.uint64(seed_of(0, "held out")), numbers)
        parts = [slice(start, start + self._batch) for start in range(0, count, self._batch)]
        return [self._made(numbers[part], keys[part]) for part in parts]

    def check(self, vocabulary: int) -> None:
        """Raise ModelError where a text holds, or a mask may draw, an id outside a vocabulary."""
        check_ids(torch.from_numpy(self._ids), vocabulary)
        check_ids([self._masker.vocabulary - 1], vocabulary)

    def _cut(self, name: str) -> Iterator[tuple[int, int, int]]:
        """Stretches that fill a row, or the rest of a document; of pairs, two pieces or more.

        Of each its document, its first piece, and the one after its last.
        """
        least, count = 2 if self._paired else 1, len(self._documents)
        if count < least:
            raise fail(
                f"data {name} holds {count} documents, and what does not follow a text "
                "is taken from another. Put each document into a file or a row of JSONL of its "
                "own, or set next_sentence: 0"
            )
        if np.all(np.diff(self._documents) < least):
            raise fail(f"data {name}: no document has two parts to pair. Give longer texts")
        bounds: list[int] = self._bounds.tolist()
        for number, (first, last) in enumerate(self._documents.tolist()):
            while last - first >= least:
                end = bisect_left(bounds, bounds[first] + self._room, first + least, last)
                if last - end < least:
                    end = last  # alone, what is left would make no row
                yield number, first, end
                first = end

    def _order(self, epoch: int) -> Ids:
        if epoch not in self._orders:
            if len(self._orders) > 1:
                self._orders.clear()
            generator = torch.Generator().manual_seed(seed_of(self._seed, "order", epoch))
            order = torch.randperm(self.rows, generator=generator)
            self._orders[epoch] = grouped(order, self._sizes, self._batch, generator).numpy()
        return self._orders[epoch]

    def _made(self, numbers: Ids, keys: Keys) -> Batch:
        """The stretches of these numbers as rows; all that is drawn for one comes from its key."""
        texts = self._pairs(numbers, keys) if self._paired else self._singles(numbers)
        begins, sizes = self._marked(texts)
        lengths = sizes.sum(1, keepdims=True)
        longest = lengths.max()
        width = max(longest, min(self._length, -(-longest // _MULTIPLE) * _MULTIPLE))
        column = np.arange(width)
        there = column < lengths
        before = np.cumsum(sizes).reshape(sizes.shape) - sizes
        tokens = np.repeat((begins - before).ravel(), sizes.ravel()) + np.arange(lengths.sum())
        ids = np.full(there.shape, self._pad, dtype=np.int64)
        ids[there] = self._ids[tokens]
        starts = None
        if self._whole_words:
            starts = np.ones_like(there)
            # What is left of a word has the draw of the mark before it, which is never chosen.
            starts[there] = self._starts[tokens]
        masked, labels = self._masker.masked(ids, self._draws(keys[:, None], there), starts)
        parts = (masked, there.astype(np.int64), labels)
        if self._paired:
            second = there & (column >= sizes[:, :3].sum(1, keepdims=True))
            parts = (*parts, second.astype(np.int64), texts.follows)
        return Batch(*map(torch.from_numpy, parts))

    def _draws(self, keys: Keys, there: Flags) -> Draws:
        """What the masks of rows are drawn from; keys: [rows, 1], there: [rows, width]."""
        places = _TEXTS + 3 * np.arange(there.shape[1])
        choice, act, others = (uniform(keys, places + number) for number in range(3))
        return Draws(np.where(there, choice, 1.0), act, below(self._masker.vocabulary, others))

    def _marked(self, texts: _Texts) -> tuple[Ids, Ids]:
        """Where the parts of rows begin and their sizes, marks among them: [rows, 2 texts + 1]."""
        rows, count = texts.begins.shape
        begins = np.full((rows, 2 * count + 1), len(self._ids) - 1)
        begins[:, 0] = len(self._ids) - 2
        begins[:, 1::2] = texts.begins
        sizes = np.ones_like(begins)
        sizes[:, 1::2] = texts.ends - texts.begins
        return begins, sizes

    def _singles(self, numbers: Ids) -> _Texts:
        _, first, end = self._spans[numbers].T
        begins = self._bounds[first]
        ends = np.minimum(self._bounds[end], begins + self._room)
        return _Texts(begins[:, None], ends[:, None], np.zeros_like(first))

    def _pairs(self, numbers: Ids, keys: Keys) -> _Texts:
        """What comes before a cut, and what comes after it or another text; cut to the room.

        The first loses its beginning and the second its end, whichever the second is.
        """
        bounds = self._bounds
        document, first, end = self._spans[numbers].T
        cut, follows, *other = uniform(keys[:, None], np.arange(_TEXTS)).T
        cut = first + 1 + below(end - first - 1, cut)
        follows = below(2, follows)
        after = bounds[end] - bounds[cut]
        start, stop = np.where(follows, self._others(document, after, *other), (cut, end))
        wanted = np.minimum(after, self._room // 2)
        begin = np.maximum(bounds[first], bounds[cut] - (self._room - wanted))
        most = self._room - (bounds[cut] - begin)
        ends = bounds[cut], np.minimum(bounds[stop], bounds[start] + most)
        return _Texts(np.stack([begin, bounds[start]], 1), np.stack(ends, 1), follows)

    def _others(self, document: Ids, wanted: Ids, which: Floats, where: Floats) -> tuple[Ids, Ids]:
        """Pieces of other documents, about as many tokens as are wanted: the first, and the end."""
        number = below(len(self._documents) - 1, which)
        first, last = self._documents[number + (number >= document)].T
        start = first + below(last - first, where)
        # a piece belongs to it where its middle comes before the end that is wanted
        end = np.searchsorted(self._middles, 2 * (self._bounds[start] + wanted), side="right")
        return start, np.clip(end, start + 1, last)


def _marks(tokenizer: Any) -> Ids:
    """What stands before a row, and what closes each text."""
    marks = tokenizer.cls_token_id, tokenizer.sep_token_id
    if None in marks:
        raise ModelError(
            "the tokenizer has no tokens to begin a row and to close a text ([CLS] and [SEP] of "
            "BERT). Give a model that was made for masked-lm"
        )
    return np.array(marks)
