"""Rows of a dataset on the hub: `hub:NAME`, `hub:NAME:CONFIGURATION`; `datasets` reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from attar.core.recipe import DataSource
from attar.core.step import Task
from attar.data.example import Example
from attar.data.files import HUB, fail, split_of
from attar.data.readers import Items
from attar.data.rows import Wants, check_columns, example_of
from attar.errors import AttarError, Problem


def read_hub(source: DataSource, task: Task) -> tuple[Items, bool]:
    """The rows of the split that is asked for, and whether a fixed share is still to be taken."""
    parts = _fetch(source.path)
    chosen = list(parts)
    share = False
    if source.split is not None and len(parts) == 1:
        share = True  # one part alone is dealt out like a single file
    elif source.split is not None:
        chosen = [name for name in parts if split_of(name) == source.split]
        if not chosen:
            raise fail(
                f"{source.path} has no {source.split} split; it has {', '.join(parts)}. "
                "Ask for another split"
            )
    wants = Wants.of(source, task)
    for name in chosen:
        check_columns(parts[name].column_names, wants, f"{source.path}/{name}")
    return _rows(source.path, {name: parts[name] for name in chosen}, wants), share


def digest_of(source: DataSource) -> str:
    """A hash over what is read, the same for every task: the hub has no files here to hash."""
    digest = hashlib.sha256()
    for item in read_hub(source, "causal-lm")[0]:
        seen = str(item)
        if isinstance(item, Example):
            more = () if item.domain is None else (item.domain,)
            seen = repr((item.text, item.label, item.messages, *more))
        digest.update(seen.encode("utf-8", "replace") + b"\0")
    return digest.hexdigest()


def _fetch(path: str) -> dict[str, Any]:
    name, _, configuration = path.removeprefix(HUB).partition(":")
    if not name:
        raise fail(f"{path}: no dataset's name. Write hub:NAME")
    import datasets

    try:
        parts: Any = datasets.load_dataset(name, configuration or None)
        return dict(parts)
    except ConnectionError as error:
        raise AttarError(
            f"{path}: the hub could not be reached. Give a file or a folder, which work without "
            f"a network, or try again ({error})"
        ) from error
    except (ValueError, OSError, RuntimeError) as error:
        raise fail(f"{path}: {str(error).strip() or type(error).__name__}") from error


def _rows(path: str, parts: dict[str, Any], wants: Wants) -> Iterator[Example | Problem]:
    for name, part in parts.items():
        kept = [column for column in wants.columns() if column in part.column_names]
        words = getattr(part.features.get(wants.label), "names", None)
        for number, row in enumerate(part.select_columns(kept), 1):
            label = row.get(wants.label) if wants.label is not None else None
            if words is not None and isinstance(label, int):
                row = {**row, wants.label: words[label] if 0 <= label < len(words) else None}
            item = example_of(row, wants, f"{path}/{name}", number)
            if item is not None:
                yield item
