"""Batches of prompts with answers: what is judged is the answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attar.core.keys import seed_of
from attar.data.batches import IGNORED, Batch
from attar.data.example import Example
from attar.data.tokenize import check_ids, filler
from attar.train.writing import prompt_of


@dataclass(frozen=True)
class Answered:
    """A prompt as a row of data, what is to come after it, and whether the text ends there."""

    prompt: Example
    answer: str
    ends: bool


class Answers:
    """Shuffled batches without end, each made from its number alone, as `Stream` gives them.

    Rows are cut to `length` tokens: first the prompt's beginning, then the answer's end.
    """

    def __init__(
        self, rows: Sequence[Answered], tokenizer: Any, length: int, batch: int, seed: int
    ) -> None:
        self._rows = [_encoded(row, tokenizer, length) for row in rows]
        self._pad, self._batch, self._seed = filler(tokenizer), batch, seed
        self.per_epoch = -(-len(self._rows) // batch)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch that a rank works on in a step."""
        start = (step * world + rank) * self._batch
        return self._padded([self._row(at) for at in range(start, start + self._batch)])

    def in_order(self) -> list[Batch]:
        """All rows once, to judge on."""
        starts = range(0, len(self._rows), self._batch)
        return [self._padded(self._rows[at : at + self._batch]) for at in starts]

    def check(self, vocabulary: int) -> None:
        """Raise ModelError where a row holds an id outside a model's vocabulary."""
        check_ids([[*before, *after] for before, after in self._rows], vocabulary)

    def _row(self, at: int) -> tuple[list[int], list[int]]:
        epoch, place = divmod(at, len(self._rows))
        generator = torch.Generator().manual_seed(seed_of(self._seed, "order", epoch))
        return self._rows[int(torch.randperm(len(self._rows), generator=generator)[place])]

    def _padded(self, rows: Sequence[tuple[list[int], list[int]]]) -> Batch:
        width = max(len(before) + len(after) for before, after in rows)
        ids = torch.full((len(rows), width), self._pad)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for number, (before, after) in enumerate(rows):
            end = len(before) + len(after)
            ids[number, :end] = torch.tensor([*before, *after])
            mask[number, :end] = 1
            labels[number, len(before) : end] = torch.tensor(after)
        return Batch(ids, mask, labels)


def _encoded(row: Answered, tokenizer: Any, length: int) -> tuple[list[int], list[int]]:
    """Prompt and answer in tokens, with the one that ends a text where it ends."""
    before = prompt_of(row.prompt, tokenizer)
    after = tokenizer(row.answer, add_special_tokens=False).input_ids
    if row.ends and tokenizer.eos_token_id is not None:
        after = [*after, tokenizer.eos_token_id]
    room = max(1, length - len(after))
    before = before[-room:]
    return before, after[: length - len(before)]
