"""What pydantic found wrong, said in plain sentences with the keys as the user wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from attar.core.registry import nearest
from attar.errors import KeyPath, Problem, dotted

_WANTED = {
    "string": "text",
    "int": "an integer",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "yes or no",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "a mapping of keys to values",
    "mapping": "a mapping of keys to values",
    "model": "a mapping of keys to values",
    "path": "a path",
    "none": "nothing",
}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


def explain(
    error: ValidationError, model: type[BaseModel], value: Any, at: KeyPath = (), who: str = ""
) -> list[Problem]:
    """One Problem for each mistake in `value`, which `model` refused.

    `at` is where the value sits in the recipe; `who` is put in front of every sentence.
    """
    found: dict[KeyPath, list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_as_written(item, value), []).append(item)
    return [
        Problem(who + _sentence(items, path, model), path=(*at, *path))
        for path, items in found.items()
    ]


def _as_written(item: Any, value: Any) -> KeyPath:
    """The path of keys in the value itself: without the names that unions and shorthands add."""
    path: list[str | int] = []
    for part in item["loc"]:
        if isinstance(value, Mapping) and part in value:
            value = cast("Mapping[Any, Any]", value)[part]
        elif isinstance(value, list | tuple) and isinstance(part, int):
            value = cast("Sequence[Any]", value)[part]
        elif not (item["type"] == "missing" and part == item["loc"][-1]):
            continue
        path.append(part)
    return tuple(path)


def _sentence(items: list[Any], path: KeyPath, model: type[BaseModel]) -> str:
    """The sentence for one value; a value that fits no part of a union has several items."""
    name = f"`{dotted(path)}`"
    field, annotation = _follow(model, path)
    wanted = [want for item in items if (want := _wanted(item["type"])) is not None]
    special = next((item for item in items if _wanted(item["type"]) is None), None)
    if special is None:
        found = show(items[0]["input"])
        hint = f"; write [{found}]" if wanted == ["a list"] and _scalar(items[0]["input"]) else ""
        if "path" in _keys(annotation):
            wanted.insert(0, "a path")
        if wanted == ["text"] and isinstance(items[0]["input"], int | float):
            hint = "; put it in quotes"
        return f"{name} must be {' or '.join(dict.fromkeys(wanted))}, got {found}{hint}"
    kind, found = special["type"], show(special["input"])
    if kind == "missing":
        return _missing(path, field)
    if kind == "extra_forbidden":
        return unknown_key(path, _keys(_follow(model, path[:-1])[1]))
    if kind in ("value_error", "assertion_error"):
        return f"{name}: {special['ctx']['error']}" if path else str(special["ctx"]["error"])
    return f"{name} must {_rule(kind, special, field)}, got {found}{_near(kind, special)}"


def _wanted(kind: str) -> str | None:
    """The type that was wanted, where the value has another one."""
    stem = re.sub(r"_(type|parsing|parsing_size|from_float|attributes_type|required)$", "", kind)
    return _WANTED.get(stem)


def _rule(kind: str, item: Any, field: FieldInfo | None) -> str:
    """What a value must be, for the kinds of mistakes that are not about its type."""
    context: dict[str, Any] = item.get("ctx", {})
    if context.keys() & _BOUNDS.keys():
        return f"be {_range(context, field)}"
    if kind in ("literal_error", "enum"):
        return f"be {context['expected']}"
    if kind == "multiple_of":
        return f"be a multiple of {show(context['multiple_of'])}"
    if kind == "string_pattern_mismatch" and context["pattern"] == _NAME_PATTERN:
        return (
            "start with a letter or a digit and go on with letters, digits, dots, dashes and "
            "underscores only"
        )
    if kind == "string_pattern_mismatch":
        return f"match {context['pattern']}"
    if kind in ("string_too_short", "too_short"):
        least = context["min_length"]
        return "not be empty" if least == 1 else f"have at least {least} entries"
    if kind in ("string_too_long", "too_long"):
        return f"have at most {context['max_length']} entries"
    message: str = item["msg"]  # a kind of mistake that no technique makes yet
    return re.sub(r"^\w+ should ", "", message)


def _range(context: Mapping[str, Any], field: FieldInfo | None) -> str:
    """Both ends of a range, although the value broke only one."""
    limits = {
        key: limit
        for key in _BOUNDS
        for mark in (field.metadata if field is not None else ())
        if (limit := getattr(mark, key, None)) is not None
    }
    limits |= {key: context[key] for key in _BOUNDS if key in context}
    return " and ".join(f"{_BOUNDS[key]} {show(limit)}" for key, limit in limits.items())


def _near(kind: str, item: Any) -> str:
    if kind not in ("literal_error", "enum") or not isinstance(item["input"], str):
        return ""
    return nearest(item["input"], re.findall(r"'([^']*)'", item["ctx"]["expected"]))


def _missing(path: KeyPath, field: FieldInfo | None) -> str:
    text = f"the key `{dotted(path)}` is missing"
    if field is not None and field.description:
        text += f" ({field.description})"
    if field is not None and field.examples:
        text += f". Write {path[-1]}: {field.examples[0]}"
    return text


def unknown_key(path: KeyPath, known: Sequence[str]) -> str:
    """The sentence for a key that nothing knows."""
    hint = nearest(str(path[-1]), list(known)) or f"; the keys here are {', '.join(known)}"
    return f"unknown key {dotted(path)!r}{hint}"


def show(value: Any) -> str:
    """A value as the user would write it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    text = repr(value) if isinstance(value, str | int | float) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def _scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _inside(annotation: Any, part: str | int) -> tuple[FieldInfo | None, Any]:
    """The field that a key belongs to, if any, and the type of what it holds."""
    for option in _options(annotation):
        if _is_model(option):
            field = option.model_fields.get(str(part))
            return field, None if field is None else field.annotation
        inner = get_args(option)
        if get_origin(option) is dict:
            return None, inner[1]
        if get_origin(option) in (list, tuple) and inner:
            return None, inner[0]
    return None, None


def _follow(model: type[BaseModel], path: KeyPath) -> tuple[FieldInfo | None, Any]:
    """The field that a path leads to, its own or that of its list, and the type there."""
    annotation: Any = model
    found: FieldInfo | None = None
    for part in path:
        field, annotation = _inside(annotation, part)
        found = field or found
    return found, annotation


def _keys(annotation: Any) -> list[str]:
    """The keys that a type knows."""
    return [key for o in _options(annotation) if _is_model(o) for key in o.model_fields]


def _options(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows, unions and marks taken apart."""
    if get_origin(annotation) in (Union, UnionType):
        for option in get_args(annotation):
            yield from _options(option)
    elif get_origin(annotation) is Annotated:
        yield from _options(get_args(annotation)[0])
    else:
        yield annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
