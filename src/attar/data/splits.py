"""Fixed shares of data that came without splits: 90 % train, 5 % dev, 5 % test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from attar.core.recipe import Split
from attar.data.example import Example

MANY_DOCUMENTS = 20  # from here on whole documents are dealt out, before that each is cut
_HELD_OUT = 0.05
_PARAGRAPH = re.compile(r"\n[ \t]*\n+")
_LINE = re.compile(r"\n")


def share_rows(examples: Sequence[Example], split: Split) -> list[Example]:
    """The split's rows, in their order.

    Rows are dealt by the hash of their text, so that equal rows land on one side and neither
    the machine nor the order of the rows matters.
    """
    digests = [example.digest() for example in examples]
    ranked = sorted(set(digests))
    held = max(1, round(len(ranked) * _HELD_OUT))
    bounds = {"dev": (0, held), "test": (held, 2 * held), "train": (2 * held, len(ranked))}
    start, end = bounds[split]
    mine = set(ranked[start:end])
    return [row for row, digest in zip(examples, digests, strict=True) if digest in mine]


def share_documents(examples: Sequence[Example], split: Split) -> list[Example]:
    """The split's documents: whole ones where there are many, else a stretch of each."""
    if len(examples) >= MANY_DOCUMENTS:
        return share_rows(examples, split)
    stretches = [replace(each, text=share_text(each.text, split)) for each in examples]
    return [each for each in stretches if each.text.strip()]


def share_text(text: str, split: Split) -> str:
    """A stretch of a text: its first 90 % of characters, the next 5 or the last 5.

    The cuts are moved to the nearest end of a paragraph, or else of a line.
    """
    first, second = _cut(text, 1 - 2 * _HELD_OUT), _cut(text, 1 - _HELD_OUT)
    return {"train": text[:first], "dev": text[first:second], "test": text[second:]}[split]


def _cut(text: str, share: float) -> int:
    target, reach = int(len(text) * share), int(len(text) * _HELD_OUT / 2)
    low, high = max(0, target - reach), target + reach
    for boundary in (_PARAGRAPH, _LINE):
        ends = [found.end() for found in boundary.finditer(text, low, high)]
        if ends:
            return min(ends, key=lambda end: abs(end - target))
    return target
