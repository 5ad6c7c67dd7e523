"""Batches of prompts with answers: what is judged is the answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attar.data.batches import IGNORED, Batch, Shuffled
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


class Answers(Shuffled):
    """Shuffled batches of prompts and what is to come after them."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any, batch: int, seed: int) -> None:
        self._own = _Padded(rows, filler(tokenizer))
        super().__init__(self._own, batch, seed)

    def in_order(self) -> list[Batch]:
        """All rows once, to judge on."""
        numbers = list(range(self.rows))
        starts = range(0, self.rows, self._batch)
        return [self._own.batch(numbers[at : at + self._batch], []) for at in starts]

    def check(self, vocabulary: int) -> None:
        """Raise ModelError where a row holds an id outside a model's vocabulary."""
        check_ids([[*before, *after] for before, after in self._own.rows], vocabulary)


@dataclass
class _Padded:
    """Rows, and how they become a batch."""

    rows: Sequence[Row]
    pad: int
    lengths: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, numbers: list[int], seeds: list[int]) -> Batch:
        return padded([self.rows[number] for number in numbers], self.pad)


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
