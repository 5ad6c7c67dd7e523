"""A technique's settings as rows to read: names, types, defaults and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from attar.core.explain import show
from attar.core.grid import GridName
from attar.core.scope import Scope
from attar.core.step import Reads, Step

_WORDS: dict[Any, str] = {
    int: "integer",
    float: "number",
    bool: "yes or no",
    str: "text",
    Scope: "scope",
}
_NAMES = {
    "data": "a dataset's name",
    "model": "original, a stage's id, or a model's path",
    "file": "a path, or package:NAME/PATH",
}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted name, what it takes, its default, and what it does."""

    name: str
    type: str
    default: str
    description: str


def settings_of(technique: type[Step]) -> list[Setting]:
    """The settings of a technique, its own first and those that every step has last."""
    fields = technique.model_fields
    shared = [name for name in ("scope", "id") if name in fields]
    own = [name for name in fields if name not in shared]
    return [row for name in [*own, *shared] for row in _rows(name, fields[name])]


def _rows(name: str, field: FieldInfo) -> list[Setting]:
    """A field's row, and those of the fields of a section below it."""
    rows = [Setting(name, _type(field), _default(field), field.description or "")]
    section = next((kind for kind in _options(field.annotation) if _is_section(kind)), None)
    if section is not None:
        for inner, below in section.model_fields.items():
            rows += _rows(f"{name}.{inner}", below)
    return rows


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not Scope


def _type(field: FieldInfo) -> str:
    """What a field takes, in words: `integer, at least 1`."""
    marked = [field.metadata, *(getattr(o, "__metadata__", ()) for o in _options(field.annotation))]
    marks = [mark for group in marked for mark in group]
    text = " or ".join(dict.fromkeys(_word(kind, marks) for kind in _options(field.annotation)))
    for bound, word in _BOUNDS.items():
        limits = [limit for mark in marks if (limit := getattr(mark, bound, None)) is not None]
        text += "".join(f", {word} {show(limit)}" for limit in limits)
    return text


def _options(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [part for option in get_args(annotation) for part in _options(option)]
    return [annotation]


def _word(kind: Any, marks: list[Any]) -> str:
    kind, inner = (get_args(kind)[0], kind) if hasattr(kind, "__metadata__") else (kind, kind)
    if kind is NoneType:
        return "nothing"
    if get_origin(kind) is Literal:
        return ", ".join(str(value) for value in get_args(kind))
    if kind is str and any(isinstance(mark, Reads) for mark in marks):
        what = next(mark.what for mark in marks if isinstance(mark, Reads))
        return _NAMES[what]
    if inner == GridName or (kind is str and _is_grid(marks)):
        return "grid"
    if get_origin(kind) in (list, tuple, set, frozenset):
        inside = [part for part in get_args(kind) if part is not Ellipsis]
        return f"list of {' or '.join(dict.fromkeys(_word(part, []) for part in inside))}"
    if _is_section(kind):
        return "section"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _is_grid(marks: list[Any]) -> bool:
    return any(mark in marks for mark in getattr(GridName, "__metadata__", ()))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "–"
    if isinstance(value, Scope):
        return ", ".join(value.patterns)
    if isinstance(value, BaseModel):
        return "as below"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or "none"
    return value if isinstance(value, str) else show(value)
