"""Documents as pieces of token ids: sentences, the long ones cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from attar.data.example import Dataset
from attar.data.masking import Flags, Ids
from attar.data.sentences import halves, sentences
from attar.errors import ModelError

_TOGETHER = 4096  # sentences that are tokenized at a time


@dataclass(frozen=True)
class Run:
    """Tokens in a row: their ids, and where a word starts, both [length]."""

    ids: Ids
    starts: Flags

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, first: int, end: int) -> Run:
        """The tokens from `first` to `end`; what is left of a word counts as one."""
        starts = self.starts[first:end].copy()
        starts[:1] = True
        return Run(self.ids[first:end], starts)


class Pieces:
    """All documents of a dataset: the first and last piece of each, and the tokens of any run.

    A sentence of more than `longest` tokens makes several pieces, and where pieces are to be
    `paired`, one that is all of a document makes two. Without `words` every token counts as one.
    """

    def __init__(
        self, dataset: Dataset, tokenizer: Any, longest: int, paired: bool, words: bool
    ) -> None:
        if words and not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                "this tokenizer does not say which tokens make a word. Set whole_words: no, or "
                "put its tokenizer.json beside the weights"
            )
        self.documents: list[tuple[int, int]] = []
        self._bounds = [0]
        found: list[list[int]] = []
        starts: list[list[bool]] = []
        for ids, begins, opens in _tokenized(dataset, tokenizer, paired, words):
            before = len(self._bounds) - 1
            for first in range(0, len(ids), longest):
                self._bounds.append(self._bounds[-1] + min(longest, len(ids) - first))
            if opens or not self.documents:
                self.documents.append((before, before))
            self.documents[-1] = (self.documents[-1][0], len(self._bounds) - 1)
            found.append(ids)
            starts.append(begins)
        self.documents = [(first, last) for first, last in self.documents if last > first]
        self.ids = np.array([id_ for ids in found for id_ in ids], dtype=np.int64)
        self._starts = np.array([start for row in starts for start in row], dtype=np.bool_)

    def size(self, first: int, end: int) -> int:
        """How many tokens the pieces from `first` to `end` have."""
        return self._bounds[end] - self._bounds[first]

    def run(self, first: int, end: int) -> Run:
        """The tokens of the pieces from `first` to `end`."""
        whole = Run(self.ids, self._starts)
        return whole.cut(self._bounds[first], self._bounds[end])


def _tokenized(
    dataset: Dataset, tokenizer: Any, paired: bool, words: bool
) -> Iterator[tuple[list[int], list[bool], bool]]:
    """Of each sentence: its ids, which of them start a word, and whether it opens a document."""
    waiting: list[tuple[str, bool]] = []
    for example in dataset.examples:
        found = sentences(example.text)
        if paired and len(found) == 1:
            found = halves(found[0])
        waiting += [(text, not at) for at, text in enumerate(found)]
        while len(waiting) >= _TOGETHER:
            yield from _encoded(waiting[:_TOGETHER], tokenizer, words)
            waiting = waiting[_TOGETHER:]
    if waiting:
        yield from _encoded(waiting, tokenizer, words)


def _encoded(
    some: list[tuple[str, bool]], tokenizer: Any, words: bool
) -> Iterator[tuple[list[int], list[bool], bool]]:
    texts = [text for text, _ in some]
    encoding = tokenizer(
        texts,
        add_special_tokens=False,
        verbose=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    for number, (_, opens) in enumerate(some):
        ids: list[int] = list(encoding["input_ids"][number])
        starts = [True] * len(ids)
        if words:
            numbers: list[int | None] = encoding.word_ids(number)
            pairs = zip(numbers, [None, *numbers], strict=False)
            starts = [own is None or own != before for own, before in pairs]
        yield ids, starts, opens
