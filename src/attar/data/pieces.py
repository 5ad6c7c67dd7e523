"""Documents as pieces of token ids: sentences, the long ones cut."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from attar.data.example import Dataset
from attar.data.masking import Flags, Ids
from attar.data.sentences import halves, sentences
from attar.errors import ModelError

_TOGETHER = 4096  # sentences that are tokenized at a time


class Pieces:
    """All documents of a dataset: their tokens in a row, and where their pieces begin.

    ids: [tokens]. starts: [tokens], whether a word starts there; without `words` each does.
    bounds: [pieces + 1], the first token of each, and how many there are. documents:
    [documents, 2], the first piece of each and that after its last.

    A sentence of more than `longest` tokens makes several pieces, and where pieces are to be
    `paired`, one that is all of a document makes two.
    """

    def __init__(
        self, dataset: Dataset, tokenizer: Any, longest: int, paired: bool, words: bool
    ) -> None:
        if words and not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                "this tokenizer does not say which tokens make a word. Set whole_words: no, or "
                "put its tokenizer.json beside the weights"
            )
        ids: list[Ids] = [np.empty(0, dtype=np.int64)]
        starts: list[Flags] = [np.empty(0, dtype=np.bool_)]
        sizes: list[int] = []
        opens: list[bool] = []
        for encoding, firsts in _tokenized(dataset, tokenizer, paired):
            rows: list[list[int]] = encoding["input_ids"]
            ids.append(np.fromiter(chain.from_iterable(rows), np.int64))
            starts.append(_starts(encoding, len(rows)) if words else np.ones_like(ids[-1], bool))
            sizes += map(len, rows)
            opens += firsts
        self.ids, self.starts = np.concatenate(ids), np.concatenate(starts)
        whole = np.array(sizes, dtype=np.int64)
        counts = -(-whole // longest)  # pieces of each sentence
        ends, some = np.cumsum(counts), counts > 0
        lengths = np.full(counts.sum(), longest, dtype=np.int64)
        lengths[ends[some] - 1] -= (counts * longest - whole)[some]
        self.bounds: Ids = np.append(0, np.cumsum(lengths))
        first = np.append((ends - counts)[np.array(opens, dtype=np.bool_)], len(lengths))
        documents = np.stack([first[:-1], first[1:]], 1)
        self.documents: Ids = documents[documents[:, 0] < documents[:, 1]]


def _tokenized(dataset: Dataset, tokenizer: Any, paired: bool) -> Iterator[tuple[Any, list[bool]]]:
    """Some sentences at a time: the tokenizer's encoding, and which of them open a document."""
    waiting: list[tuple[str, bool]] = []
    for example in dataset.examples:
        found = sentences(example.text)
        if paired and len(found) == 1:
            found = halves(found[0])
        waiting += [(text, not at) for at, text in enumerate(found)]
        while len(waiting) >= _TOGETHER:
            yield _encoded(waiting[:_TOGETHER], tokenizer)
            waiting = waiting[_TOGETHER:]
    if waiting:
        yield _encoded(waiting, tokenizer)


def _encoded(some: list[tuple[str, bool]], tokenizer: Any) -> tuple[Any, list[bool]]:
    encoding = tokenizer(
        [text for text, _ in some],
        add_special_tokens=False,
        verbose=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return encoding, [opens for _, opens in some]


def _starts(encoding: Any, count: int) -> Flags:
    """Where words start in the tokens of all sentences of an encoding."""
    starts: list[bool] = []
    for numbers in map(encoding.word_ids, range(count)):
        pairs = zip(numbers, [None, *numbers], strict=False)
        starts += [own is None or own != before for own, before in pairs]
    return np.array(starts, dtype=np.bool_)
