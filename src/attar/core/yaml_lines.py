"""YAML read into plain data that remembers on which line everything stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from attar.errors import KeyPath, Problem, RecipeError

MOST_CHARACTERS = 1_000_000
MOST_VALUES = 100_000  # aliases expanded: nine lines of them can hold a billion values
MOST_LEVELS = 50
_TAG = "tag:yaml.org,2002:"
_AS_TEXT = {"str", "timestamp", "value"}
_SENTENCES = {  # what PyYAML says, and what we say
    "'\\t'": "a tab stands where YAML takes spaces only; indent with spaces",
    "expected ',' or ']'": "a list opened with [ is not closed; expected , or ]",
    "expected ',' or '}'": "a mapping opened with { is not closed; expected , or }",
    "found '<scalar>'": "text goes on after a closing quotation mark; put all of it in one pair of "
    "quotes",
    "<block end>": "this line does not belong to what stands above it; indent it like its "
    "neighbors, with `- ` before every entry of a list and `key:` before every value",
    "mapping values are not allowed": "no `:` is expected here; put text with a colon in "
    "quotes, and check the indentation of this line and the one above",
    "could not find expected ':'": "a `:` after the key was expected",
    "unexpected end of stream": "a quotation mark is opened and never closed",
    "undefined alias": "this alias (*name) names no anchor (&name) before it",
    "duplicate anchor": "this anchor (&name) is given twice; rename one",
    "a single document": "a second document begins here; a recipe is one document, so remove ---",
    "unknown escape character": "this backslash sequence means nothing in double quotes; use "
    "single quotes",
    "that cannot start any token": "this character cannot begin a value; put the text in quotes",
    "unacceptable character": "a control character stands here; remove it",
}


@dataclass
class Located:
    """Plain data, the line of every key and entry in it, keys given twice, the first line."""

    plain: Any
    lines: dict[KeyPath, int] = field(default_factory=dict[KeyPath, int])
    problems: list[Problem] = field(default_factory=list[Problem])
    first: int | None = None

    def line(self, path: KeyPath) -> int | None:
        """The line of what a path leads to, or else of what it would sit in."""
        return next((self.lines[p] for p in _upwards(path) if p in self.lines), None)


def _upwards(path: KeyPath) -> list[KeyPath]:
    return [path[:length] for length in range(len(path), 0, -1)]


def read_yaml(text: str, file: str) -> Located:
    """Read YAML into plain data; raises RecipeError with the line of what cannot be read."""
    if len(text) > MOST_CHARACTERS:
        what = f"a recipe of {len(text):,} characters is no recipe; give the data's path instead"
        raise RecipeError([Problem(what, file)])
    try:
        root = yaml.SafeLoader(text).get_single_node()
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError([Problem(_in_words("unacceptable character"), file, line)]) from None
    except yaml.MarkedYAMLError as error:
        raise RecipeError([_syntax(error, file)]) from None
    except RecursionError:
        raise RecipeError([Problem(_TOO_DEEP, file)]) from None
    reading = _Reading(file)
    plain = None if root is None else reading.value(root, ())
    if reading.fatal:
        raise RecipeError(reading.fatal)
    first = None if root is None else _line(root)
    return Located(plain, reading.lines, reading.problems, first)


def _syntax(error: yaml.MarkedYAMLError, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    message = _in_words(f"{error.problem} {error.context or ''}")
    if mark is None:
        return Problem(message, file)
    opened = error.context_mark
    if opened is not None and opened.line != mark.line and "opened" in message:
        message += f" (opened on line {opened.line + 1})"
    return Problem(f"column {mark.column + 1}: {message}", file, mark.line + 1)


def _in_words(problem: str) -> str:
    known = (sentence for part, sentence in _SENTENCES.items() if part in problem)
    return next(known, f"this is not YAML: {problem.strip()}")


_TOO_DEEP = f"values are nested over {MOST_LEVELS} deep, or an alias holds itself; write it flatter"


class _Reading:
    """One pass over the nodes of a file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self.fatal: list[Problem] = []
        self._left = MOST_VALUES
        self._make = SafeConstructor()

    def value(self, node: Node, path: KeyPath) -> Any:
        """The plain value of a node."""
        self._left -= 1
        if self._left < 0:
            text = f"the aliases in this file stand for more than {MOST_VALUES:,} values"
            raise RecipeError([Problem(text, self.file, _line(node))])
        if len(path) > MOST_LEVELS:
            raise RecipeError([Problem(_TOO_DEEP, self.file, _line(node))])
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, ScalarNode):
            return self._scalar(node, kind)
        if isinstance(node, SequenceNode) and kind == "seq":
            return [self._entry(item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, path)
        return self._refuse_tag(node)

    def _entry(self, node: Node, path: KeyPath) -> Any:
        self.lines[path] = _line(node)
        return self.value(node, path)

    def _scalar(self, node: ScalarNode, kind: str) -> Any:
        if kind in _AS_TEXT or (kind in ("int", "float") and ":" in node.value):
            return node.value  # 12:30 is not the number 750
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return self._make.construct_yaml_bool(node)
            if kind == "int":
                return self._make.construct_yaml_int(node)
            if kind == "float":
                return self._make.construct_yaml_float(node)
        except (ValueError, KeyError, IndexError, ConstructorError):
            text = f"{node.value[:40]!r} cannot be read as {kind}; put it in quotes if it is text"
            self.fatal.append(Problem(text, self.file, _line(node)))
            return None
        return self._refuse_tag(node)

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merged = {**self._merge(value_node, path), **merged}
                continue
            if not isinstance(key_node, ScalarNode):
                text = "a key must be a word; put text with braces or brackets in quotes"
                self.fatal.append(Problem(text, self.file, _line(key_node)))
                continue
            key, line = str(key_node.value), _line(key_node)
            if key in first:
                text = f"the key {key!r} is given twice, first on line {first[key]}; remove one"
                self.problems.append(Problem(text, self.file, line))
                continue
            first[key] = self.lines[(*path, key)] = line
            found[key] = self.value(value_node, (*path, key))
        return {**merged, **found}

    def _merge(self, node: Node, path: KeyPath) -> dict[str, Any]:
        """What `<<: *name` brings in; the lines of keys given here win."""
        sources: list[Node] = node.value if isinstance(node, SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for source in sources:
            if not isinstance(source, MappingNode):
                text = "<< takes the alias of a mapping (<<: *name)"
                self.fatal.append(Problem(text, self.file, _line(source)))
                continue
            lines = dict(self.lines)
            merged = {**self.value(source, path), **merged}
            self.lines |= lines
        return merged

    def _refuse_tag(self, node: Node) -> None:
        tag = node.tag.replace(_TAG, "!!")
        text = (
            f"the tag {tag} is not taken, and nothing was executed; write plain YAML without tags"
        )
        self.fatal.append(Problem(text, self.file, _line(node)))


def _line(node: Node) -> int:
    return node.start_mark.line + 1
