"""Single values set over a recipe's plain data: `steps.gptq.grid=int4-g64`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from attar.core.explain import show
from attar.core.plain import SPLITS, expand_data, is_shorthand, split_step, stage_ids
from attar.core.registry import nearest
from attar.core.yaml_lines import read_yaml
from attar.errors import KeyPath, Problem, RecipeError

_FORM = "An override is written key=value, such as seed=3 or steps.0.grid=int4-g64"


@dataclass
class Overridden:
    """Plain data, which override set each path in it, and what is wrong with the others."""

    plain: dict[str, Any]
    origins: dict[KeyPath, str]
    problems: list[Problem]

    def origin(self, path: KeyPath) -> str | None:
        """The override that set what a path leads to, if one did."""
        above = (self.origins.get(path[:length]) for length in range(len(path), 0, -1))
        return next((text for text in above if text is not None), None)

    def origin_below(self, path: KeyPath) -> str | None:
        """The override that set something inside what a path leads to, if one did."""
        below = (text for place, text in self.origins.items() if place[: len(path)] == path)
        return next(below, None)


def override(plain: Mapping[str, Any], overrides: Sequence[str]) -> Overridden:
    """Set each override in a copy of the recipe's plain data."""
    result = Overridden(copy.deepcopy(dict(plain)), {}, [])
    for text in overrides:
        try:
            path = _set(result.plain, text)
        except RecipeError as error:
            result.problems += [Problem(f"override {text!r}: {p.message}") for p in error.problems]
        else:
            result.origins[path] = text
    return result


def _set(plain: dict[str, Any], text: str) -> KeyPath:
    """Set one override; returns the path that was set, without the step's kind."""
    key, equals, written = text.partition("=")
    words = key.strip().split(".")
    if not equals or not all(words):
        raise _wrong(f"there is no {'key' if equals else 'value'}. {_FORM}")
    located = read_yaml(written, "override")
    if located.problems:
        raise RecipeError(located.problems)
    place: Any = plain
    path: KeyPath = ()
    if words[0] == "steps" and len(words) > 1:
        place, path, words = _step(plain, words[1:])
    elif words[0] == "data" and len(words) > 1:
        _open_data(plain, words[1])
    for word in words[:-1]:
        place, path = _enter(place, word, path)
    last = _index(place, words[-1], path)
    place[last] = located.plain
    return (*path, last)


def _step(plain: dict[str, Any], words: list[str]) -> tuple[Any, KeyPath, list[str]]:
    """Where a step's settings are, its path, and the words that are left."""
    if not isinstance(plain.get("steps"), list):
        raise _wrong("the recipe has no list of steps")
    steps = cast("list[Any]", plain["steps"])
    index, rest = _find_step(steps, words)
    if not rest:
        return steps, ("steps",), [str(index)]
    pair = split_step(steps[index])
    if pair is None or not isinstance(pair[1], dict):
        raise _wrong(f"step {index + 1} is not written as a technique with its settings")
    kind, settings = pair
    steps[index] = {kind: settings}
    return settings, ("steps", index), rest


def _find_step(steps: list[Any], words: list[str]) -> tuple[int, list[str]]:
    if words[0].isascii() and words[0].isdecimal() and int(words[0]) < len(steps):
        return int(words[0]), words[1:]
    ids = stage_ids(_named(step) for step in steps)
    for length in range(len(words), 0, -1):  # an id may hold dots
        name = ".".join(words[:length])
        if name in ids:
            return ids.index(name), words[length:]
    known = ", ".join(f"{index} ({name})" for index, name in enumerate(ids)) or "none"
    hint = nearest(words[0], ids)
    raise _wrong(f"there is no step {words[0]!r}{hint}; the steps are {known}")


def _named(step: Any) -> tuple[str, str | None]:
    kind, settings = split_step(step) or ("?", {})
    given = cast("dict[str, Any]", settings).get("id") if isinstance(settings, dict) else None
    return kind, given if isinstance(given, str) else None


def _open_data(plain: dict[str, Any], word: str) -> None:
    """Take the shorthand for train, dev and test apart where one of them is set."""
    data = plain.get("data")
    if is_shorthand(data):
        plain["data"] = expand_data(data) if word in SPLITS else data


def _enter(place: Any, word: str, path: KeyPath) -> tuple[Any, KeyPath]:
    """The section below a key, made where there is none."""
    key = _index(place, word, path)
    path = (*path, key)
    table = cast("dict[str | int, Any]", place)  # a list is read and set in the same way
    inner = None if isinstance(place, dict) and key not in place else table[key]
    if isinstance(inner, str) and path[0] in ("model", "data"):
        inner = {"path": inner}
    if inner is None:
        inner = {}
    if not isinstance(inner, dict | list):
        raise _wrong(f"`{word}` holds {show(inner)}, and nothing can be set below it")
    table[key] = inner
    return table[key], path


def _index(place: Any, word: str, path: KeyPath) -> str | int:
    """The key of a mapping, or the index of a list that is long enough."""
    if not isinstance(place, list):
        return word
    length = len(cast("list[Any]", place))
    if not (word.isascii() and word.isdecimal() and int(word) < length):
        name = path[-1] if path else "the list"
        raise _wrong(f"`{name}` is a list of {length}, counted from 0, and has no {word!r}")
    return int(word)


def _wrong(message: str) -> RecipeError:
    return RecipeError([Problem(message)])
