"""Lists of synonyms, and the words of a text that have some, in English and in Chinese."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attar.data.files import fail
from attar.data.lines import lines
from attar.errors import Problem

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_CHINESE = re.compile(r"[\u3400-\u9fff]+")
_CODE = re.compile(r"[A-Z][a-z]\d\d[A-Z]\d\d[=#@]")  # of a group in Cilin
_SHORTEST = 3  # letters: shorter words are nearly all grammar
_PARTS = ("noun", "verb", "adj", "adv")  # of speech, as WordNet's files are called


@dataclass(frozen=True)
class Synonyms:
    """The synonyms of words, none for words that are only known; the longest word's length."""

    words: dict[str, tuple[str, ...]]
    longest: int

    def places(self, text: str) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """Where words with synonyms are: start, end, and what may stand there instead."""
        for found in _WORD.finditer(text):
            if _CHINESE.search(found[0]):
                spans = self._chinese(text, *found.span())
            else:
                spans = [found.span()]
            for start, end in spans:
                word = text[start:end]
                if others := self.words.get(word.lower()):
                    yield start, end, tuple(as_written(other, word) for other in others)

    def _chinese(self, text: str, start: int, end: int) -> list[tuple[int, int]]:
        """The words of a stretch: Chinese has no spaces to tell where they end.

        The longest that the list knows, from right to left, which errs less often than from left
        to right. Single characters are passed over: they are parts of words as often as words.
        """
        spans: list[tuple[int, int]] = []
        while end > start:
            size = min(self.longest, end - start)
            while size > 1 and text[end - size : end] not in self.words:
                size -= 1
            spans += [(end - size, end)] * (size > 1)
            end -= size
        return spans[::-1]


def as_written(word: str, model: str) -> str:
    """A word in capitals as another one is."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def read_synonyms(path: Path) -> Synonyms:
    """Read a list of words and their synonyms, or a folder with WordNet's files.

    A line of a list is `word<TAB>synonym<TAB>synonym...`, or a group of Cilin: a code that ends
    in `=`, then words that all mean the same; the words of its other groups (`#`, `@`) tell only
    where words end.
    Raises DataError where nothing can be read.
    """
    try:
        words = _wordnet(path) if path.is_dir() else _list(path)
    except (ValueError, LookupError):
        raise fail("its files are not of WordNet's form", path) from None
    except OSError as error:
        raise fail(f"cannot be read: {error.strerror or error}", path) from error
    if not any(words.values()):
        raise fail("holds no synonyms. A line is word<TAB>synonym<TAB>synonym", path)
    kept = {word: tuple(dict.fromkeys(others)) for word, others in words.items()}
    return Synonyms(kept, max(map(len, kept)))


def _list(path: Path) -> dict[str, list[str]]:
    words: dict[str, list[str]] = {}
    for number, line in lines(path):
        if isinstance(line, Problem):
            raise fail(line.message, path, number)
        cells = line.split("\t") if "\t" in line else line.split()
        cells = [cell.strip() for cell in cells if cell.strip()]
        code = cells[0] if cells and _CODE.fullmatch(cells[0]) else None
        if code is not None:
            group = cells[1:]
            for word in group:
                others = [o for o in group if o != word] if code.endswith("=") else []
                words.setdefault(word.lower(), []).extend(others)
        elif len(cells) > 1:
            words.setdefault(cells[0].lower(), []).extend(cells[1:])
        elif cells:
            raise fail("one word alone: a line is word<TAB>synonym<TAB>synonym", path, number)
    return words


def _wordnet(folder: Path) -> dict[str, list[str]]:
    """Single words of a word's first and so most frequent sense.

    Of several parts of speech it is the one with the most senses that occur in WordNet's tagged
    texts; where none does (`as` for arsenic), the word has no synonyms. Nor have short words.
    """
    words: dict[str, list[str]] = {}
    most: dict[str, int] = {}
    for part in _PARTS:
        index, data = folder / f"index.{part}", folder / f"data.{part}"
        if not (index.is_file() and data.is_file()):
            raise fail(f"no WordNet: it has no {index.name} and {data.name}", folder)
        groups = {cells[0]: _synset(cells) for cells in _cells(data)}
        for cells in _cells(index):
            word, senses = cells[0], int(cells[2])
            seen = int(cells[-senses - 1])
            if "_" in word or len(word) < _SHORTEST or seen <= most.get(word, 0):
                continue
            most[word] = seen
            words[word] = [o for o in groups.get(cells[-senses], []) if o.lower() != word]
    return {word: others for word, others in words.items() if others}


def _cells(path: Path) -> Iterator[list[str]]:
    """The cells of a WordNet file's lines; its licence stands above them, indented."""
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from (line.partition(" | ")[0].split() for line in file if not line.startswith("  "))


def _synset(cells: list[str]) -> list[str]:
    """Words of a line `offset file type count word id word id ...`; adjectives may have (marks)."""
    count = int(cells[3], 16)
    words = (word.partition("(")[0] for word in cells[4 : 4 + 2 * count : 2])
    return [word for word in words if "_" not in word]
