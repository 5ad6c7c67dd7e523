"""Word vectors of GloVe's form, and the words that are nearest to one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attar.data.files import fail


@dataclass(frozen=True)
class Vectors:
    """Words and their vectors, each of length one, [words, width]."""

    words: list[str]
    rows: np.ndarray
    places: dict[str, int]

    def near(self, word: str, count: int) -> list[str]:
        """The words with the largest cosine to this one; none where it is not known."""
        place = self.places.get(word, self.places.get(word.lower()))
        if place is None:
            return []
        likeness = self.rows @ self.rows[place]
        order = np.argsort(-likeness, kind="stable")[: count + 1]
        return [self.words[index] for index in order if index != place][:count]


def read_vectors(path: Path) -> Vectors:
    """Read a file with `word number number ...` a line; DataError where a line is not so."""
    words: list[str] = []
    rows: list[np.ndarray] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                word, *numbers = line.rstrip().split(" ")
                rows.append(np.array(numbers, dtype=np.float32))
                words.append(word)
                if not numbers or len(rows[-1]) != len(rows[0]):
                    raise fail("a line is a word and as many numbers as every other", path, number)
    except ValueError as error:
        raise fail(f"not a word and numbers: {error}", path, len(words) + 1) from None
    except OSError as error:
        raise fail(f"cannot be read: {error.strerror or error}", path) from error
    if not words:
        raise fail("holds no vectors", path)
    table = np.stack(rows)
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    return Vectors(words, table, {word: index for index, word in enumerate(words)})
