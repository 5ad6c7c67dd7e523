"""From examples to token ids: packed sequences for language models, rows for classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from attar.data.example import Dataset, Example
from attar.data.files import fail
from attar.errors import ModelError
from attar.models.padding import filler

PIECE = 16_384  # characters of a long document that are tokenized together
_ROUND = 8 * PIECE  # characters that are handed to the tokenizer at a time
_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of one text, its class and a probability of each class, None where it has none."""

    ids: list[int]
    label: int | None
    shares: tuple[float, ...] | None = None


def sequences(
    dataset: Dataset, tokenizer: Any, length: int, limit: int | None = None
) -> torch.LongTensor:
    """Packed tokens of all documents, `[n, length]`, with n at most `limit`.

    Documents are joined with the end-of-text token where the tokenizer has one. Each sequence
    starts with the begin-of-text token where the tokenizer puts it before every text (models
    such as Gemma are lost without it). The remainder is dropped, and no more is tokenized than
    `limit` asks for. Raises DataError when there is not one full sequence.
    """
    begin = beginning(tokenizer)
    body = length - len(begin)
    wanted = None if limit is None else limit * body
    ids: list[torch.Tensor] = []
    count = 0
    for some in _token_runs(dataset, tokenizer):
        ids.append(torch.tensor(some, dtype=torch.long))
        count += len(some)
        if wanted is not None and count >= wanted:
            break
    rows = count // body
    if rows < 1:
        asked = "" if limit is None else f" ({limit} x {length} = {limit * length} were asked for)"
        raise fail(
            f"data {dataset.name}: {count} tokens are too few for one sequence of "
            f"{length}{asked}. Give more text, or a smaller length"
        )
    rows = rows if limit is None else min(rows, limit)
    packed = torch.cat(ids)[: rows * body].view(rows, body)
    if begin:
        packed = torch.cat([torch.tensor(begin).expand(rows, 1), packed], dim=1)
    return packed.contiguous()  # pyright: ignore[reportReturnType]


def encode(
    dataset: Dataset, tokenizer: Any, length: int, labels: Sequence[str] | None
) -> list[Encoded]:
    """Each example on its own, with special tokens, cut to `length` tokens.

    `labels` are the classes in order; None leaves the labels aside. Raises DataError for a
    label that is not among them.
    """
    numbers = None if labels is None else {label: number for number, label in enumerate(labels)}
    encoded: list[Encoded] = []
    for start in range(0, len(dataset.examples), _ROWS):
        some = dataset.examples[start : start + _ROWS]
        texts = [text_of(example, tokenizer, dataset.name) for example in some]
        rows = _ids(tokenizer, texts, add_special_tokens=True, truncation=True, max_length=length)
        for example, ids in zip(some, rows, strict=True):
            ids = ids or [filler(tokenizer)]
            if numbers is None:
                encoded.append(Encoded(ids, None))
                continue
            label = class_number(example, numbers, dataset.name)
            encoded.append(Encoded(ids, label, _shares(example, numbers, dataset.name)))
    return encoded


def check_ids(ids: torch.Tensor | Iterable[Any], vocabulary: int) -> None:
    """Raise ModelError where an id lies outside a model's vocabulary.

    `ids` is a tensor, or a list of ids, of lists of ids or of Encoded.
    """
    largest = _largest(ids)
    if largest >= vocabulary:
        raise ModelError(
            f"the tokenizer makes ids up to {largest} but the model's vocabulary is {vocabulary}: "
            "the tokenizer is of another model. Give the tokenizer that came with the model"
        )


def _largest(ids: Any) -> int:
    if isinstance(ids, torch.Tensor):
        return int(ids.max()) if ids.numel() else -1
    if isinstance(ids, int):
        return ids
    if isinstance(ids, Encoded):
        ids = ids.ids
    return max((_largest(each) for each in ids), default=-1)


def class_number(example: Example, numbers: dict[str, int], name: str) -> int | None:
    """The number of a row's class, None where it has none; DataError for one not among them."""
    return None if example.label is None else _number(example.label, example, numbers, name)


def _shares(example: Example, numbers: dict[str, int], name: str) -> tuple[float, ...] | None:
    """The probability of each class by its number, 0 where none is told; None without any."""
    if not example.probabilities:
        return None
    found = [0.0] * len(numbers)
    for label, share in example.probabilities.items():
        found[_number(label, example, numbers, name)] = share
    return tuple(found)


def _number(label: str, example: Example, numbers: dict[str, int], name: str) -> int:
    if label not in numbers:
        there = ", ".join(f'"{each}"' for each in list(numbers)[:20])
        text = f'{example.where}: data {name} has the label "{label}"'
        raise fail(f"{text}, which the model was not made for; it has {there}")
    return numbers[label]


def _token_runs(dataset: Dataset, tokenizer: Any) -> Iterator[list[int]]:
    """Runs of ids, as many documents or pieces at a time as make one round's work."""
    end = tokenizer.eos_token_id
    waiting: list[str] = []
    last: list[bool] = []
    size = 0

    def run() -> list[int]:
        rows = _ids(tokenizer, waiting, add_special_tokens=False)
        for ids, closes in zip(rows, last, strict=True):
            if closes and end is not None and (not ids or ids[-1] != end):
                ids.append(end)
        return list(chain.from_iterable(rows))

    for example in dataset.examples:
        parts = list(pieces(text_of(example, tokenizer, dataset.name)))
        for number, part in enumerate(parts, 1):
            waiting.append(part)
            last.append(number == len(parts))
            size += len(part)
            if size >= _ROUND or len(waiting) >= _ROWS:
                yield run()
                waiting, last, size = [], [], 0
    if waiting:
        yield run()


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """A long text in parts of about `size` characters, cut at ends of lines where there are any."""
    start = 0
    while len(text) - start > size:
        end = text.rfind("\n", start + size // 2, start + size) + 1
        if end <= 0:  # no line ends here: before a space, which belongs to the word after it
            end = text.rfind(" ", start + size // 2, start + size)
            end = end if end > 0 else start + size
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def begun(text: str, size: int) -> str:
    """The beginning of a text, about `size` characters at most, that ends where a word does.

    Where no word ends in the second half of that, as in Chinese, it ends anywhere.
    """
    end = max(text.rfind(space, size // 2, size + 1) for space in " \n\t")
    return text[: end if end > 0 else size]


def _ids(tokenizer: Any, texts: list[str], **settings: Any) -> list[list[int]]:
    """Token ids without the tokenizer's remark that a text is longer than its model takes."""
    encoding = tokenizer(
        texts,
        verbose=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        **settings,
    )
    return [list(ids) for ids in encoding["input_ids"]]


def beginning(tokenizer: Any) -> list[int]:
    """The begin-of-text id where the tokenizer puts one before every text."""
    begin = getattr(tokenizer, "bos_token_id", None)
    if begin is None:
        return []
    ids = _ids(tokenizer, ["a"], add_special_tokens=True)[0]
    return [begin] if ids and ids[0] == begin else []


def text_of(example: Example, tokenizer: Any, name: str) -> str:
    """What the model reads: the text, or the chat in the model's own template."""
    if example.messages is None:
        return example.text
    if not getattr(tokenizer, "chat_template", None):
        raise fail(
            f"{example.where}: data {name} holds chat messages, but the tokenizer has no chat "
            "template. Give the texts in a text column, or a chat model"
        )
    return templated(example.messages, tokenizer, example.where)


def templated(
    messages: Sequence[Mapping[str, Any]], tokenizer: Any, where: str, **settings: Any
) -> str:
    """A chat in the model's own template; raises DataError where that refuses it."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **settings)
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise fail(
            f"{where}: the tokenizer's chat template refuses these messages: {error}. "
            "Mend them, or give the texts in a text column"
        ) from error
