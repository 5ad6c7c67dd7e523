"""Datasets that a step made: kept in the store row by row, and written out for people."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attar.data.example import Dataset, Example, classes
from attar.data.files import fail
from attar.errors import StoreError, UserError

ROWS = "rows.jsonl"
TABLES = (".jsonl", ".tsv", ".csv")
_FIELDS = ("text", "label", "messages", "probabilities", "domain")
_OPTIONAL = ("label", "domain")  # columns of a table


def write_rows(examples: Sequence[Example], path: Path, where: bool = True) -> None:
    """Write an object a line; with `where`, also the file and line that each came from."""
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
        for example in examples:
            row = {name: getattr(example, name) for name in _FIELDS}
            row |= {"where": example.where} if where else {}
            kept = {name: value for name, value in row.items() if value is not None}
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")


def read_rows(path: Path, name: str, fingerprint: str) -> Dataset:
    """Read what `write_rows` wrote, equal to what was written."""
    try:
        with path.open(encoding="utf-8", errors="surrogatepass", newline="\n") as file:
            examples = [_example(json.loads(line)) for line in file]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} is damaged ({error}). Remove the folder {path.parent} and run again: it will "
            "be made again"
        ) from None
    return Dataset(name, examples, fingerprint, classes(examples))


def _example(row: dict[str, Any]) -> Example:
    messages = row.pop("messages", None)
    return Example(**row, messages=None if messages is None else tuple(messages))


def check_table(path: Path) -> None:
    """Raise UserError where a file of this name cannot be written as a table."""
    if path.suffix.lower() not in TABLES:
        endings = ", ".join(TABLES)
        raise UserError(f"{path}: data is written as {endings}. Give one of these endings")
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no folder {path.absolute().parent} to write into. Make it first")


def write_table(examples: Sequence[Example], path: Path) -> None:
    """Write rows so that a recipe's `data` reads them again; the ending tells the format."""
    check_table(path)
    if path.suffix.lower() == ".jsonl":
        write_rows(examples, path, where=False)
        return
    if any(example.messages is not None for example in examples):
        raise UserError(f"{path}: chat messages fit no table of cells. Write .jsonl instead")
    optional = [name for name in _OPTIONAL if any(getattr(e, name) is not None for e in examples)]
    names = ["text", *optional]
    cells = [[getattr(each, name) or "" for name in names] for each in examples]
    if path.suffix.lower() == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([names, *cells])
        return
    for number, row in enumerate(cells, 1):
        if any(mark in cell for cell in row for mark in "\t\r\n"):
            raise fail(f"row {number} has a tab or a line break in it. Write .jsonl instead", path)
    path.write_text("".join("\t".join(row) + "\n" for row in [names, *cells]), "utf-8")
