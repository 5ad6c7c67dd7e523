"""The licence of a base model, where its files tell."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata
from importlib.util import find_spec
from pathlib import Path

from attar.models.source import PACKAGE, Files

_FRONT = re.compile(r"^---\n(.*?)\n---", re.DOTALL)
_LINE = re.compile(r"^license:\s*['\"]?([\w.+-]+)", re.MULTILINE)
_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_KNOWN = {
    "apache license": "apache-2.0",
    "mit license": "mit",
    "bsd 3-clause": "bsd-3-clause",
    "gnu general public license": "gpl",
}


def licence_of(path: str, files: Files | None) -> str | None:
    """An identifier such as `apache-2.0`; None where nothing tells.

    Looks at a model card, a licence's file, the field of a GGUF file, and the metadata of the
    package that the model is in.
    """
    found = None
    if files is not None:
        found = _of_card(files.folder) or _of_file(files.folder)
        if found is None and files.gguf is not None:
            found = _of_gguf(files.gguf)
    if found is None and path.startswith(PACKAGE):
        found = _of_package(path.removeprefix(PACKAGE))
    return found


def _of_card(folder: Path) -> str | None:
    try:
        front = _FRONT.match((folder / "README.md").read_text("utf-8", errors="replace"))
    except OSError:
        return None
    line = _LINE.search(front[1]) if front else None
    return line[1].lower() if line else None


def _of_file(folder: Path) -> str | None:
    for name in _FILES:
        path = folder / name
        if path.is_file():
            begins = path.read_text("utf-8", errors="replace")[:400].lower()
            return next((id_ for words, id_ in _KNOWN.items() if words in begins), "other")
    return None


def _of_gguf(path: Path) -> str | None:
    if find_spec("gguf") is None:
        return None
    import gguf

    from attar.models.headers import quick_gguf

    with quick_gguf():
        field = gguf.GGUFReader(path).fields.get("general.license")
    return str(field.contents()).lower() if field is not None else None


def _of_package(name: str) -> str | None:
    try:
        facts = metadata(name)
    except PackageNotFoundError:
        return None
    told = [facts[field].strip() for field in ("License-Expression", "License") if field in facts]
    return next((text.splitlines()[0].lower() for text in told if text), None)
