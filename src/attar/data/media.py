"""Rows of images and sounds: a table that names their files, or a folder for each class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attar.data.example import Dataset, Example
from attar.data.files import fail
from attar.data.rows import Wants, label_of, no_column, no_word
from attar.errors import Problem


def read_folder(path: Path, wants: Wants) -> Iterator[Example | Problem]:
    """The one row of a file, whose class is called like the folder that it lies in."""
    label = path.parent.name if wants.label is not None else None
    text = _captioned(wants, path.parent.name)
    if wants.needs_text and not text:
        yield Problem("it has no text. Set caption, such as `a photo of a {label}`", str(path))
        return
    yield Example(text, label, where=str(path), media=path)


def media_example(
    row: Mapping[str, Any], wants: Wants, file: str, line: int
) -> Example | Problem | None:
    """The Example of a table's row that names a file, or what is wrong with it."""
    name = row.get(str(wants.media))
    if not isinstance(name, str) or not name.strip():
        if wants.media not in row:
            return Problem(no_column("media", str(wants.media), row), file, line)
        return Problem(f'"{wants.media}" names no file', file, line)
    path = Path(file).parent / name.strip()
    if not path.is_file():
        return Problem(f'"{wants.media}" names {path}, and there is no such file', file, line)
    label = None if wants.label is None else label_of(row.get(wants.label))
    if wants.needs_label and label is None:
        return Problem(no_word("label", str(wants.label), row), file, line)
    text = row.get(wants.text)
    text = text if isinstance(text, str) and text.strip() else _captioned(wants, label)
    if wants.needs_text and not text:
        return Problem(f'no text: "{wants.text}" is empty, and no caption is set', file, line)
    return Example(text, label, where=f"{file}:{line}", media=path)


def check_medium(dataset: Dataset, medium: str | None) -> None:
    """Raise DataError where data holds files and the model reads text, or the other way round."""
    held = any(example.media is not None for example in dataset.examples)
    if medium is None and held:
        raise fail(
            f"data {dataset.name}: its rows are images or sounds, and the model reads text. Leave "
            "out `media`, or take a model that sees or hears"
        )
    lacking = next((each for each in dataset.examples if each.media is None), None)
    if medium is not None and lacking is not None:
        raise fail(
            f"{lacking.where}: data {dataset.name} has a row without a file, and the model sees or "
            "hears. Set media: COLUMN, or format: folder"
        )


def _captioned(wants: Wants, label: str | None) -> str:
    """The text of a row that has none of its own."""
    if wants.caption is None or (label is None and "{label}" in wants.caption):
        return ""
    return wants.caption.replace("{label}", label or "")
