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
_PARTS = ("noun", "verb", "adj", "adv")  # of speech, as WordNet's files are called


@dataclass(frozen=True)
class Synonyms:
    """The synonyms of words; `longest` is the length of the longest word."""

    words: dict[str, tuple[str, ...]]
    longest: int

    def places(self, text: str) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """Where words with synonyms are: start, end, and what may stand there instead."""
        for found in _WORD.finditer(text):
            if _CHINESE.search(found[0]):
                yield from self._matches(text, *found.span())
            elif others := self.words.get(found[0].lower()):
                yield (*found.span(), tuple(as_written(other, found[0]) for other in others))

    def _matches(self, text: str, at: int, end: int) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """The longest words from left to right: Chinese has no spaces to tell where they end.

        Single characters are passed over: they are parts of words as often as words.
        """
        while at < end:
            size = min(self.longest, end - at)
            while size > 1 and text[at : at + size] not in self.words:
                size -= 1
            if size > 1:
                yield at, at + size, self.words[text[at : at + size]]
            at += size


def as_written(word: str, model: str) -> str:
    """A word in capitals as another one is."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def read_synonyms(path: Path) -> Synonyms:
    """Read a list of words and their synonyms, or a folder with WordNet's files.

    A line of a list is `word<TAB>synonym<TAB>synonym...`, or a group of Cilin: a code that ends
    in `=`, then words that all mean the same; its other groups (`#`, `@`) are passed over.
    Raises DataError where nothing can be read.
    """
    words = _wordnet(path) if path.is_dir() else _list(path)
    if not words:
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
            group = cells[1:] if code.endswith("=") else []
            for word in group:
                words.setdefault(word.lower(), []).extend(o for o in group if o != word)
        elif len(cells) > 1:
            words.setdefault(cells[0].lower(), []).extend(cells[1:])
        elif cells:
            raise fail("one word alone: a line is word<TAB>synonym<TAB>synonym", path, number)
    return {word: others for word, others in words.items() if others}


def _wordnet(folder: Path) -> dict[str, list[str]]:
    """Single words of the first and so most frequent sense in each part of speech."""
    words: dict[str, list[str]] = {}
    for part in _PARTS:
        index, data = folder / f"index.{part}", folder / f"data.{part}"
        if not (index.is_file() and data.is_file()):
            raise fail(f"no WordNet: it has no {index.name} and {data.name}", folder)
        groups = {cells[0]: _synset(cells) for cells in _cells(data)}
        for cells in _cells(index):
            senses = int(cells[2])
            group = groups.get(cells[-senses], [])
            if "_" not in cells[0]:
                words.setdefault(cells[0], []).extend(o for o in group if o.lower() != cells[0])
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
