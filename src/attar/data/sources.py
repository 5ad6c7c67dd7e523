"""From a recipe's data source to a Dataset, with a fingerprint of what was read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from attar.core.keys import UNKNOWN, FileHashes, hash_file, key_of
from attar.core.recipe import DataSource
from attar.core.step import Task
from attar.data.example import Dataset, Example, classes
from attar.data.files import HUB, Found, find
from attar.data.hub import digest_of, read_hub
from attar.data.readers import read, shape_of
from attar.data.splits import share_documents, share_rows
from attar.data.together import check_together
from attar.errors import DataError, Problem

__all__ = ["Dataset", "Example", "check_together", "files_of", "fingerprint", "load"]

SHOWN = 20
_RULES = 2  # one more whenever the same files and settings come to mean other examples


def files_of(source: DataSource) -> list[Path]:
    """The files that a source means, in the order they are read; none for the hub.

    Raises DataError where there is nothing to read, and MissingPackage.
    """
    return [] if source.path.startswith(HUB) else list(find(source).files)


def fingerprint(
    source: DataSource, hashes: FileHashes, peek: bool = False, name: str | None = None
) -> str:
    """A key over the contents of the files and every setting but the place they lie in.

    With `peek` nothing is read, and the key is UNKNOWN where a file is not hashed yet. A hub
    dataset is fetched and hashed row by row. `name` is the dataset's, for errors.
    """
    if source.path.startswith(HUB):
        return UNKNOWN if peek else _hub_key(source)
    found = find(source) if name is None else _find_named(source, name)
    return _key(source, found, hashes.peek if peek else hashes.of)


def load(source: DataSource, task: Task, name: str) -> Dataset:
    """Read a source.

    Raises DataError with every bad line, unless the source says to skip them.
    """
    note, texts = "", False
    if source.path.startswith(HUB):
        items, share = read_hub(source, task)
        good, bad = _sorted_out(items)
        key = _hub_key(source)
    else:
        found = _find_named(source, name)
        good, bad = _read_all(found, source, task)
        share, note = found.share, found.note
        key = _key(source, found, hash_file)
        texts = all(shape_of(path, source, task) == "text" for path in found.files)
    if bad and source.bad_lines == "error":
        raise DataError(_shown(bad))
    examples = good
    if share and source.split is not None:
        examples = (share_documents if texts else share_rows)(good, source.split)
    if not examples:
        raise DataError(_nothing_left(source, name, len(good), bad))
    examples = examples[: source.limit]
    warnings = ([note] if note else []) + _skipped(bad)
    return Dataset(name, examples, key, classes(examples), bad, warnings)


def _find_named(source: DataSource, name: str) -> Found:
    try:
        return find(source)
    except DataError as error:
        problems = [Problem(f"data {name}: {p.message}", p.file, p.line) for p in error.problems]
        raise DataError(problems) from error


def _read_all(found: Found, source: DataSource, task: Task) -> tuple[list[Example], list[Problem]]:
    """Every file's rows and bad lines; raises DataError where whole files cannot be read."""
    good: list[Example] = []
    bad: list[Problem] = []
    fatal: list[Problem] = []
    enough = None if found.share else source.limit
    for path in found.files:
        try:
            more, worse = _sorted_out(read(path, source, task), enough)
        except DataError as error:
            fatal += error.problems
            continue
        good += more
        bad += worse
        if enough is not None:
            enough -= len(more)
            if enough <= 0:
                break
    if fatal:
        raise DataError(_shown(fatal if source.bad_lines == "skip" else fatal + bad))
    return good, bad


def _sorted_out(
    items: Iterable[Example | Problem], enough: int | None = None
) -> tuple[list[Example], list[Problem]]:
    good: list[Example] = []
    bad: list[Problem] = []
    for item in items:
        if isinstance(item, Problem):
            bad.append(item)
            continue
        good.append(item)
        if enough is not None and len(good) >= enough:
            break
    return good, bad


def _key(source: DataSource, found: Found, hash_of: Callable[[Path], str]) -> str:
    contents = sorted([name, hash_of(p)] for name, p in zip(found.names, found.files, strict=True))
    contents += [[name, hash_of(path)] for name, path in _named(found, source)]
    settings = _settings(source)
    del settings["path"]
    return key_of("data", _RULES, contents, settings)


def _settings(source: DataSource) -> dict[str, Any]:
    """Every setting, but those that came later where they say nothing: keys are what they were."""
    unsaid = {name for name in ("domain", "media", "caption") if getattr(source, name) is None}
    return source.model_dump(mode="json", exclude=unsaid)


def _named(found: Found, source: DataSource) -> list[tuple[str, Path]]:
    """The files that tables name, beside those that are read themselves; bad rows name none."""
    if source.media is None or source.format == "folder":
        return []
    named: dict[str, Path] = {}
    for table in found.files:
        rows = (item for item in read(table, source, "embedding") if isinstance(item, Example))
        some = [row.media for row in rows if row.media is not None]
        named |= {os.path.relpath(path, table.parent): path for path in some}
    return sorted(named.items())


def _hub_key(source: DataSource) -> str:
    settings = _settings(source)
    return key_of("data", _RULES, digest_of(source), settings)


def _shown(problems: Sequence[Problem]) -> list[Problem]:
    """The first problems, how many more there are, and the key that passes over them."""
    shown = list(problems[:SHOWN])
    if len(problems) > SHOWN:
        shown.append(Problem(f"and {len(problems) - SHOWN} more"))
    if any(problem.line is not None for problem in problems):
        shown.append(Problem("Mend them, or set bad_lines: skip to pass over bad lines and count"))
    return shown


def _skipped(problems: Sequence[Problem]) -> list[str]:
    counts = Counter(problem.file for problem in problems)
    firsts = {problem.file: problem for problem in reversed(problems)}
    return [
        f"{file}: skipped {count} bad line{'s' if count > 1 else ''}; the first: {firsts[file]}"
        for file, count in counts.items()
    ]


def _nothing_left(
    source: DataSource, name: str, rows: int, bad: Sequence[Problem]
) -> list[Problem]:
    if rows:
        return [
            Problem(
                f"data {name}: no row is left for the {source.split} split, a fixed share of "
                f"{rows} rows of {source.path}. Give more rows, or files named train, dev and test"
            )
        ]
    reason = f"data {name}: {source.path} holds no row that can be read"
    return [Problem(f"{reason}; {len(bad)} bad lines were skipped"), *bad[:SHOWN]]
