"""One generator a format, from a file to Examples and to the Problems of its bad lines.

A Problem is yielded where the rest of the file can still be read, and a DataError raised where
it cannot.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from attar.core.recipe import DataSource
from attar.core.step import Task
from attar.data.example import Example
from attar.data.files import fail, format_of
from attar.data.lines import blank, has_tab, lines, not_blank
from attar.data.media import media_example, read_folder
from attar.data.rows import Wants, check_columns, example_of, no_column
from attar.errors import Problem

Items = Iterator[Example | Problem]
_DEFAULT_TEXT = DataSource.model_fields["text"].default


def read(path: Path, source: DataSource, task: Task) -> Items:
    """Every Example of a file, with a Problem for each bad line.

    Raises DataError where the file as a whole cannot be read.
    """
    wants = Wants.of(source, task)
    shape = shape_of(path, source, task)
    if shape == "text" and wants.classify:
        raise fail(
            "a plain text file has no labels, and this task sorts texts into classes. Write one "
            "row a line as text<TAB>label and set format: tsv (and labeled: no without labels)",
            path,
        )
    if shape == "text" and wants.domain is not None:
        raise fail("a plain text file has no columns: give rows, or leave `domain` out", path)
    nothing = True
    try:
        for item in READERS[shape](path, wants):
            nothing = False
            yield item
    except OSError as error:
        raise fail(f"cannot be read: {error.strerror or error}", path) from error
    if nothing:
        yield Problem("the file is empty: it holds no rows", str(path))


def shape_of(path: Path, source: DataSource, task: Task) -> str:
    """The format to read a file in; a .txt for classification with tabs in it is a table."""
    shape = format_of(path, source.format)
    if shape == "text" and source.format == "auto" and task == "classification":
        first = next((line for _, line in lines(path) if not blank(line)), "")
        return "tsv" if isinstance(first, str) and "\t" in first else "text"
    return shape


def read_text(path: Path, wants: Wants) -> Items:
    """The whole file as one document."""
    good: list[str] = []
    for _, line in lines(path):
        if isinstance(line, Problem):
            yield line
        else:
            good.append(line)
    text = "\n".join(good)
    if text.strip():
        yield Example(text, where=str(path))


def read_tsv(path: Path, wants: Wants) -> Items:
    """Tab-separated rows: under a line of column names, or as `text<TAB>label`."""
    file = str(path)
    if wants.needs_label and not has_tab(path):
        raise fail(
            "no label column: there is no tab in any line; the form is text<TAB>label", path, 1
        )
    names: list[str] | None = None
    for first, (number, line) in enumerate(not_blank(lines(path))):
        if isinstance(line, Problem):
            yield line
            continue
        cells = line.split("\t")
        if first == 0:
            names = _header(cells, wants, file, number)
            if names is not None:
                continue
        problem = _wrong_width(cells, names, wants)
        if problem is not None:
            yield Problem(problem, file, number)
            continue
        columns = names or [wants.text, wants.label or ""]
        item = _example(dict(zip(columns, cells, strict=False)), _table(wants), file, number)
        if item is not None:
            yield item


def _header(cells: list[str], wants: Wants, file: str, line: int) -> list[str] | None:
    """The column names where the first line holds them."""
    names = [cell.strip() for cell in cells]
    looks = wants.text in names or wants.text != _DEFAULT_TEXT or len(names) > 2
    if (wants.label is not None and wants.label in names) or wants.media in names:
        looks = True  # a header whose text column has another name must not pass for a row
    if not looks:
        return None
    check_columns(names, _table(wants), file, line)
    return names


def _wrong_width(cells: list[str], names: list[str] | None, wants: Wants) -> str | None:
    if names is not None:
        if len(cells) == len(names):
            return None
        return f"{len(cells)} cells where the first line names {len(names)} columns"
    if len(cells) > 2:
        return f"{len(cells)} cells where text<TAB>label is expected: a tab too many"
    if wants.needs_label and len(cells) < 2:
        return "no label: there is no tab; the form is text<TAB>label"
    return None


def read_csv(path: Path, wants: Wants) -> Items:
    """Comma-separated rows under a line of column names, quoted strictly."""
    file, table = str(path), _table(wants)
    feed = _Feed(path)
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        names: list[str] | None = None
        for start, row in _csv_rows(feed):
            bad = feed.take()
            yield from bad
            if isinstance(row, Problem):
                yield row
            elif bad or not row:
                continue
            elif names is None:
                names = [name.strip() for name in row]
                _check_csv_header(names, table, file)
            elif len(row) != len(names):
                text = f"{len(row)} cells where the first line names {len(names)} columns"
                yield Problem(text, file, start)
            else:
                item = _example(dict(zip(names, row, strict=True)), table, file, start)
                if item is not None:
                    yield item
        yield from feed.take()
    finally:
        csv.field_size_limit(limit)


class _Feed:
    """Lines for the csv module; a line that is not UTF-8 spoils the row that it is part of."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0
        self._lines = lines(path)
        self._bad: list[Problem] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        if isinstance(line, Problem):
            self._bad.append(line)
            return "\n"
        return line + "\n"

    def take(self) -> list[Problem]:
        """The bad lines since the last call."""
        bad, self._bad = self._bad, []
        return bad


def _csv_rows(feed: _Feed) -> Iterator[tuple[int, list[str] | Problem]]:
    reader = csv.reader(feed, strict=True)
    while True:
        start = feed.number + 1
        try:
            yield start, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"not CSV: {error}"
            if "unexpected end" in str(error):
                problem = "a quotation mark that opens in this row is never closed"
            elif feed.number > start:
                problem += f" (line {feed.number}); is a quotation mark not closed?"
            yield start, Problem(problem, str(feed.path), start)


def _check_csv_header(names: list[str], wants: Wants, file: str) -> None:
    if wants.text not in names and wants.media is None:
        rule = "the first line of a CSV file must name the columns: "
        raise fail(rule + no_column("text", wants.text, names), file, 1)
    check_columns(names, wants, file, 1)


def read_jsonl(path: Path, wants: Wants) -> Items:
    """One JSON object a line."""
    file = str(path)
    for number, line in not_blank(lines(path)):
        if isinstance(line, Problem):
            yield line
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Problem(_not_json(error), file, number)
            continue
        if not isinstance(row, dict):
            kind = type(row).__name__
            yield Problem(f"a JSON {kind} where an object {{...}} is needed", file, number)
            continue
        item = _example(row, wants, file, number)
        if item is not None:
            yield item


def _not_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at place {error.colno}"
    return f"no JSON that can be read: {error}"


def read_parquet(path: Path, wants: Wants) -> Items:
    """The rows of a Parquet file; a Problem's line is the row's number."""
    if path.stat().st_size == 0:
        return
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            check_columns(names, wants, str(path))
            number = 0
            wanted = [name for name in wants.columns() if name in names]
            for batch in file.iter_batches(batch_size=4096, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    item = _example(row, wants, str(path), number)
                    if item is not None:
                        yield item
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        if "magic bytes" in reason or "footer" in reason.lower():
            reason = "it ends before its footer, so it was cut short or is of another format"
        raise fail(f"no whole Parquet file: {reason}. Write or fetch it again", path) from error


def _example(
    row: Mapping[str, Any], wants: Wants, file: str, line: int
) -> Example | Problem | None:
    made = example_of if wants.media is None else media_example
    return made(row, wants, file, line)


READERS: dict[str, Callable[[Path, Wants], Items]] = {
    "tsv": read_tsv,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "text": read_text,
    "folder": read_folder,
}


def _table(wants: Wants) -> Wants:
    """Cells are strings: chat messages are read from JSONL, Parquet and the hub only."""
    return replace(wants, messages=None)
