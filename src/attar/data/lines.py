"""Lines of UTF-8 files, numbered, with a Problem in place of one that cannot be read."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from attar.data.files import fail
from attar.errors import Problem


def lines(path: Path) -> Iterator[tuple[int, str | Problem]]:
    """The numbered lines of a UTF-8 file without their ends, with or without a byte order mark."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    byte = f"it begins with the byte 0x{raw[0]:02x}"
                    raise fail(f"{byte} of UTF-16. Save the file as UTF-8", path, 1)
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                byte = f"byte 0x{raw[error.start]:02x} at place {error.start + 1} of the line"
                yield number, Problem(f"{byte} is not UTF-8. Save it as UTF-8", str(path), number)


def not_blank(
    numbered: Iterator[tuple[int, str | Problem]],
) -> Iterator[tuple[int, str | Problem]]:
    """The lines with something in them."""
    return ((number, line) for number, line in numbered if not blank(line))


def blank(line: str | Problem) -> bool:
    """Whether nothing is in a line; tabs count, for they part empty cells."""
    return isinstance(line, str) and not line.strip(" \r\n")


def has_tab(path: Path) -> bool:
    """Whether a tab is in any line; a file of blank lines is another problem."""
    empty = True
    with path.open("rb") as file:
        for line in file:
            if b"\t" in line:
                return True
            empty = empty and not line.strip(b"\xef\xbb\xbf \r\n")
    return empty
