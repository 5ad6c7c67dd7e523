"""What every source becomes: examples with a name and a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attar.errors import Problem


@dataclass(frozen=True)
class Example:
    """One row or document; `where` is the file and line that it came from.

    `domain` is what it is about, or its task; `media` is the file of the image or sound that it is
    of; `probabilities` are those that a teacher gave each class.
    """

    text: str
    label: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    where: str = field(default="", compare=False)
    probabilities: dict[str, float] | None = field(default=None, compare=False)
    domain: str | None = None
    media: Path | None = None

    def digest(self) -> bytes:
        """A hash of what the model would see, the same for rows that differ in label only."""
        text = self.text.strip().encode("utf-8", "surrogatepass")
        return hashlib.sha256(text if self.media is None else self.media.read_bytes()).digest()


@dataclass
class Dataset:
    """Examples under the name that the recipe gives them.

    `labels` are the classes in order: a label's place is its number. `skipped` are the bad
    lines that the recipe said to pass over.
    """

    name: str
    examples: list[Example]
    fingerprint: str
    labels: tuple[str, ...] = ()
    skipped: list[Problem] = field(default_factory=list[Problem])
    warnings: list[str] = field(default_factory=list[str])


def classes(examples: Iterable[Example]) -> tuple[str, ...]:
    """The labels there are, sorted: as numbers where all are whole numbers, else as words."""
    found = {example.label for example in examples if example.label is not None}
    try:
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(found))


def shortened(text: str, width: int = 60) -> str:
    """The beginning of a text on one line, for a message."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width else line[: width - 1] + "…"
