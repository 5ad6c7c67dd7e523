"""Batches of prompts with answers: what is judged is the answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attar.core.keys import seed_of
from attar.data.batches import IGNORED, Batch
from attar.data.example import Example
from attar.data.tokenize import check_ids
from attar.models.padding import filler
from attar.train.writing import prompt_of


@dataclass(frozen=True)
class Answered:
    """A prompt as a row of data, what is to come after it, and whether the text ends there."""

    prompt: Example
    answer: str
    ends: bool


Row = tuple[list[int], list[int]]  # a prompt and what comes after it, in tokens


class Answers:
    """Shuffled batches without end, each made from its number alone, as `Stream` gives them."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any, batch: int, seed: int) -> None:
        self._rows = rows
        self._pad, self._batch, self._seed = filler(tokenizer), batch, seed
        self.per_epoch = -(-len(self._rows) // batch)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch that a rank works on in a step."""
        start = (step * world + rank) * self._batch
        return padded([self._row(at) for at in range(start, start + self._batch)], self._pad)

    def in_order(self) -> list[Batch]:
        """All rows once, to judge on."""
        starts = range(0, len(self._rows), self._batch)
        return [padded(self._rows[at : at + self._batch], self._pad) for at in starts]

    def check(self, vocabulary: int) -> None:
        """Raise ModelError where a row holds an id outside a model's vocabulary."""
        check_ids([[*before, *after] for before, after in self._rows], vocabulary)

    def _row(self, at: int) -> Row:
        epoch, place = divmod(at, len(self._rows))
        generator = torch.Generator().manual_seed(seed_of(self._seed, "order", epoch))
        return self._rows[int(torch.randperm(len(self._rows), generator=generator)[place])]


def padded(rows: Sequence[Row], pad: int) -> Batch:
    """Rows of one batch, of which what comes after the prompt is judged."""
    width = max(len(before) + len(after) for before, after in rows)
    ids = torch.full((len(rows), width), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for number, (before, after) in enumerate(rows):
        end = len(before) + len(after)
        ids[number, :end] = torch.tensor([*before, *after])
        mask[number, :end] = 1
        labels[number, len(before) : end] = torch.tensor(after)
    return Batch(ids, mask, labels)


def prompts_in(batch: Batch) -> list[list[int]]:
    """The tokens of each row that come before what is judged."""
    before = batch.attention_mask.bool() & (batch.labels == IGNORED)
    return [ids[kept].tolist() for ids, kept in zip(batch.input_ids, before, strict=True)]


def encoded(rows: Sequence[Answered], tokenizer: Any, length: int) -> list[Row]:
    """Prompts and answers in tokens, with the one that ends a text where it ends.

    Rows are cut to `length` tokens: first the prompt's beginning, then the answer's end.
    """
    return [_encoded(row, tokenizer, length) for row in rows]


def _encoded(row: Answered, tokenizer: Any, length: int) -> Row:
    before = prompt_of(row.prompt, tokenizer)
    after = tokenizer(row.answer, add_special_tokens=False).input_ids
    if row.ends and tokenizer.eos_token_id is not None:
        after = [*after, tokenizer.eos_token_id]
    room = max(1, length - len(after))
    before = before[-room:]
    return before, after[: length - len(before)]
