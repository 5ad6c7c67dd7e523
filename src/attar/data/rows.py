"""From a row of named cells to an Example, or to what is wrong with it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attar.core.recipe import DataSource
from attar.core.step import Task
from attar.data.example import Example
from attar.data.files import fail
from attar.errors import Problem


@dataclass(frozen=True)
class Wants:
    """The columns to read, and whether a row without a label or a text is good.

    `media` is the column with the path of a file, `caption` the text where there is none.
    """

    text: str
    label: str | None
    messages: str | None
    needs_label: bool
    classify: bool
    domain: str | None = None
    media: str | None = None
    caption: str | None = None
    needs_text: bool = False

    @classmethod
    def of(cls, source: DataSource, task: Task) -> Wants:
        """What a source and a task ask of a row."""
        classify = task == "classification"
        label = source.label if source.labeled else None
        needs = classify and source.labeled
        return cls(
            source.text,
            label,
            source.messages,
            needs,
            classify,
            source.domain,
            source.media,
            source.caption,
            needs_text=task == "contrastive",
        )

    def columns(self) -> list[str]:
        """The names of all columns that may be read."""
        every = (self.text, self.label, self.messages, self.domain, self.media)
        return [name for name in every if name is not None]


def check_columns(columns: Sequence[str], wants: Wants, file: str, line: int | None = None) -> None:
    """Raise DataError where a table lacks a column that is needed."""
    if wants.media is not None:
        if wants.media not in columns:
            raise fail(no_column("media", wants.media, columns), file, line)
    elif wants.text not in columns and (wants.messages is None or wants.messages not in columns):
        raise fail(no_column("text", wants.text, columns), file, line)
    if wants.needs_label and wants.label is not None and wants.label not in columns:
        hint = ", or labeled: no where there are none"
        raise fail(no_column("label", wants.label, columns) + hint, file, line)
    if wants.domain is not None and wants.domain not in columns:
        raise fail(no_column("domain", wants.domain, columns), file, line)


def no_column(setting: str, name: str, columns: Iterable[str]) -> str:
    """Say that a column is not there, which ones are, and which key names another."""
    there = [str(column) for column in columns]
    close = difflib.get_close_matches(name, there, n=1)
    guess = f' Did you mean "{close[0]}"?' if close else ""
    return f'no column "{name}"; there are: {", ".join(there)}.{guess} Set {setting}: COLUMN'


def example_of(
    row: Mapping[str, Any], wants: Wants, file: str, line: int
) -> Example | Problem | None:
    """The row's Example, what is wrong with it, or None for a blank one that may be left out."""
    text, messages = row.get(wants.text), None
    if wants.messages is not None and row.get(wants.messages) is not None:
        messages = row[wants.messages]
        wrong = _wrong_messages(messages)
        if wrong is not None:
            return Problem(wrong, file, line)
        messages = tuple(dict(message) for message in messages)
        if text is None or (isinstance(text, str) and not text.strip()):
            text = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    if text is None:
        if wants.text in row:
            return Problem(f'"{wants.text}" is null where a text is needed', file, line)
        return Problem(no_column("text", wants.text, row), file, line)
    if not isinstance(text, str):
        found = type(text).__name__
        return Problem(f'"{wants.text}" is of type {found} where a text is needed', file, line)
    if not text.strip():
        return Problem("the text is empty", file, line) if wants.classify else None
    label = None if wants.label is None else label_of(row.get(wants.label))
    if wants.needs_label and label is None:
        return Problem(no_word("label", str(wants.label), row), file, line)
    domain = None if wants.domain is None else label_of(row.get(wants.domain))
    if wants.domain is not None and domain is None:
        return Problem(no_word("domain", wants.domain, row), file, line)
    return Example(text, label, messages, where=f"{file}:{line}", domain=domain)


def no_word(setting: str, name: str, row: Mapping[str, Any]) -> str:
    """Say that a row has no label or domain, or its table no column of them."""
    if name in row:
        return f'no {setting}: "{name}" holds neither a word nor a number'
    return no_column(setting, name, row)


def label_of(value: Any) -> str | None:
    """A label as a word: numbers in their shortest form; None where there is none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, int | str):
        return str(value).strip() or None
    return None


def _wrong_messages(messages: Any) -> str | None:
    if not isinstance(messages, list | tuple) or not messages:
        return "the messages are no list of {role, content}"
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            return f"message {number} is no object with role and content"
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                state = "is no text" if message.get(key) is not None else "is missing"
                return f'message {number}: "{key}" {state}'
    return None
