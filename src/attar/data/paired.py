"""Batches of the same texts for two models with tokenizers of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from attar.data.aligned import Stretches, align, chained
from attar.data.batches import IGNORED, Batch
from attar.data.example import Dataset
from attar.data.files import fail
from attar.data.spelling import Spelling
from attar.data.tokenize import beginning, pieces, text_of
from attar.models.padding import filler

_TOGETHER = 64  # pieces that are tokenized at a time


@dataclass(kw_only=True)
class PairedBatch(Batch):
    """Rows for the student, the same texts for the teacher, and spans that both spell.

    own_spans, their_spans: [spans, 2], from the first to after the last of the positions that
    predict a span's tokens, counted over all judged positions of the batch; in order, and no two
    overlap.
    """

    theirs: Batch
    own_spans: torch.Tensor
    their_spans: torch.Tensor


class PairedRows:
    """Rows of at most so many tokens of either model, each cut where both end a token.

    Documents follow one another, with the end-of-text token between them where both tokenizers
    have one, and a row starts with the begin-of-text token where a tokenizer puts one before
    every text. Raises UserError where less than a share of the characters, `least`, is aligned.
    """

    lengths: torch.Tensor | None = None

    def __init__(
        self,
        dataset: Dataset,
        own: Spelling,
        theirs: Spelling,
        lengths: tuple[int, int],
        least: float = 0.0,
        limit: int | None = None,
    ) -> None:
        self._sides = [_Side(own.tokenizer), _Side(theirs.tokenizer)]
        rooms = [length - len(s.begin) for length, s in zip(lengths, self._sides, strict=True)]
        wanted = None if limit is None else limit * min(rooms)
        self.stretches = _stretches(dataset, own, theirs, wanted)
        found = self.stretches
        found.insist(least, dataset.name)
        least_tokens = [2 - len(side.begin) for side in self._sides]
        self._rows = _cut(found.own_ends, found.their_ends, rooms, least_tokens)[:limit]
        if not self._rows:
            raise fail(f"data {dataset.name}: it holds no text that both tokenizers can be given")

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, numbers: list[int], seeds: list[int]) -> PairedBatch:
        """The rows of these numbers; nothing in them is random."""
        found, rows = self.stretches, [self._rows[number] for number in numbers]
        good = np.concatenate([found.good[first:last] for first, last in rows])
        batches: list[Batch] = []
        spans: list[np.ndarray] = []
        for side, ids, ends in zip(
            self._sides,
            (found.own, found.theirs),
            (found.own_ends, found.their_ends),
            strict=True,
        ):
            starts = np.insert(ends[:-1], 0, 0)
            batches.append(side.batch([ids[starts[a] : ends[b - 1]] for a, b in rows]))
            spans.append(side.places(starts, ends, rows))
        # The first token of a row has nothing before it that would predict it.
        kept = good & np.all([(s[:, 0] >= 0) & (s[:, 1] > s[:, 0]) for s in spans], axis=0)
        own, theirs = batches
        own_spans, their_spans = (torch.from_numpy(s[kept]) for s in spans)
        return PairedBatch(
            own.input_ids,
            own.attention_mask,
            own.labels,
            theirs=theirs,
            own_spans=own_spans,
            their_spans=their_spans,
        )

    def batches(self, size: int) -> list[Batch]:
        """All rows in order."""
        numbers = list(range(len(self)))
        return [self.batch(numbers[at : at + size], []) for at in range(0, len(self), size)]


class _Side:
    """One model's way to make a batch of rows of ids."""

    def __init__(self, tokenizer: Any) -> None:
        self.begin, self.pad = beginning(tokenizer), filler(tokenizer)

    def batch(self, rows: Sequence[np.ndarray]) -> Batch:
        """Rows after their begin-of-text token, padded on the right."""
        width = max(len(row) for row in rows) + len(self.begin)
        ids = torch.full((len(rows), width), self.pad)
        attended = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            whole = torch.tensor([*self.begin, *row.tolist()])
            ids[number, : len(whole)] = whole
            attended[number, : len(whole)] = 1
        return Batch(ids, attended, ids.masked_fill(attended == 0, IGNORED))

    def places(
        self, starts: np.ndarray, ends: np.ndarray, rows: Sequence[tuple[int, int]]
    ) -> np.ndarray:
        """Where each stretch of the rows is predicted: [stretches, 2]; from -1 where by nothing."""
        found: list[np.ndarray] = []
        base = 0  # judged positions so far: all tokens of a row but its first
        for first, last in rows:
            shift = len(self.begin) - 1 - starts[first]
            place = np.stack([starts[first:last], ends[first:last]], axis=1) + shift
            found.append(np.where(place[:, :1] < 0, -1, place + base))
            base += ends[last - 1] + shift
        return np.concatenate(found)


def _stretches(dataset: Dataset, own: Spelling, theirs: Spelling, wanted: int | None) -> Stretches:
    """The stretches of all documents, or of the first that have enough tokens."""
    between = _between(own, theirs)
    found: list[Stretches] = []
    count, texts = 0, _texts(dataset, own.tokenizer)
    while (some := list(islice(texts, _TOGETHER))) and (wanted is None or count < wanted):
        count += _add(found, some, own, theirs, between)
    if not found:
        raise fail(f"data {dataset.name}: it holds no text")
    return chained(found)


def _texts(dataset: Dataset, tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """Documents in pieces, each with whether it is the last of its document."""
    for example in dataset.examples:
        parts = list(pieces(text_of(example, tokenizer, dataset.name)))
        yield from ((part, number == len(parts)) for number, part in enumerate(parts, 1))


def _add(
    found: list[Stretches],
    texts: Sequence[tuple[str, bool]],
    own: Spelling,
    theirs: Spelling,
    between: Stretches | None,
) -> int:
    """Add the stretches of some pieces; how many tokens of the shorter side there are in them."""
    placed = [spelling.place([text for text, _ in texts]) for spelling in (own, theirs)]
    count = 0
    for (text, closes), mine, yours in zip(texts, *placed, strict=True):
        found.append(align(text, (own, mine), (theirs, yours)))
        count += min(len(mine.ids), len(yours.ids))
        if closes and between is not None:
            found.append(between)
    return count


def _between(own: Spelling, theirs: Spelling) -> Stretches | None:
    ends = own.tokenizer.eos_token_id, theirs.tokenizer.eos_token_id
    if None in ends:
        return None
    one = np.ones(1, dtype=np.int64)
    return Stretches(one * ends[0], one * ends[1], one, one, np.ones(1, dtype=bool))


def _cut(
    own: np.ndarray, theirs: np.ndarray, rooms: Sequence[int], least: Sequence[int]
) -> list[tuple[int, int]]:
    """Runs of stretches, from the first to after the last, that fit both rooms.

    least: how many tokens of either side a run must have for one of them to be predicted.
    """
    rows: list[tuple[int, int]] = []
    first = 0
    begun = (0, 0)
    for number, stop in enumerate(zip(own.tolist(), theirs.tolist(), strict=True)):
        if stop[0] - begun[0] <= rooms[0] and stop[1] - begun[1] <= rooms[1]:
            continue
        if number > first:
            rows.append((first, number))
        before = (int(own[number - 1]), int(theirs[number - 1])) if number else (0, 0)
        first, begun = number, before
        if stop[0] - before[0] > rooms[0] or stop[1] - before[1] > rooms[1]:
            first, begun = number + 1, stop  # too long for any row
    if first < len(own):
        rows.append((first, len(own)))
    wanted = [max(1, number) for number in least]
    return [
        row
        for row in rows
        if all(_count(e, row) >= n for e, n in zip((own, theirs), wanted, strict=True))
    ]


def _count(ends: np.ndarray, row: tuple[int, int]) -> int:
    """How many tokens of one side a row has."""
    return int(ends[row[1] - 1] - (ends[row[0] - 1] if row[0] else 0))
