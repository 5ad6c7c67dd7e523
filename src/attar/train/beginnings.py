"""Rows of data as prompts and what the data has after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from attar.data.example import Dataset, Example
from attar.data.tokenize import beginning, begun, pieces, text_of
from attar.train.answers import Row
from attar.train.writing import asked, prompt_of


def opening(text: str, ids: Sequence[int], most: int, tokenizer: Any) -> str:
    """The beginning of a text of these ids, about `most` tokens, that ends where a word does."""
    if len(ids) <= most:
        return text
    return begun(text, len(tokenizer.decode(ids[:most], skip_special_tokens=True)))


def beginnings(dataset: Dataset, tokenizer: Any, length: int, most: int) -> Iterator[Row]:
    """Each row's prompt, and the rest of it, cut so that both are `length` tokens at most.

    The prompt of a chat is all of it up to its last answer, that of a text its first words: `most`
    tokens, or half of a shorter text. Running text makes a row for every `length` tokens or so,
    from the beginning of a line, or of a word where no line begins.
    """
    begin = beginning(tokenizer)
    for example in dataset.examples:
        if example.messages is None:
            for before, after in _of_text(example.text, tokenizer, length - len(begin), most):
                yield [*begin, *before], after
        else:
            before = prompt_of(example, tokenizer)
            after = _answer(example, before, tokenizer, dataset.name)
            yield before, after[: max(0, length - len(before))]


def _of_text(text: str, tokenizer: Any, length: int, most: int) -> Iterator[Row]:
    parts = [piece for part in pieces(text) for piece in _sized(part, tokenizer, length)]
    for number, part in enumerate(parts, 1):
        ids = _ids(part, tokenizer)
        first = _ids(opening(part, ids, min(most, length - 1, len(ids) // 2), tokenizer), tokenizer)
        size = _alike(ids, first)
        end = [tokenizer.eos_token_id] if number == len(parts) else []
        after = [*ids[size:], *(token for token in end if token is not None)]
        if size:  # a single token is nothing to go on from
            yield ids[:size], after[: length - size]


def _sized(text: str, tokenizer: Any, length: int) -> Iterator[str]:
    """A text in parts of about `length` tokens."""
    count = max(1, len(_ids(text, tokenizer)))
    return pieces(text, max(1, length * len(text) // count))


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens the two have in common from the first on: the last may go on elsewhere."""
    differ = (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(differ, min(len(one), len(other)))


def _answer(example: Example, before: list[int], tokenizer: Any, name: str) -> list[int]:
    """What a chat has after its prompt; nothing where it ends with a question."""
    given = list(example.messages or ())[len(asked(example)) :]
    if not given:
        return []
    whole = _ids(text_of(example, tokenizer, name), tokenizer)
    if whole[: len(before)] == before:
        return whole[len(before) :]
    # the template writes answers another way once they are given
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [*_ids("".join(message["content"] for message in given), tokenizer), *end]


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
