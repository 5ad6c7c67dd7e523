"""The licence of a base model, where its files tell, and what a hub calls it."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import yaml

from attar.models.source import PACKAGE, Files

_AND = ", "
_FRONT = re.compile(r"^---\n(.*?)\n---", re.DOTALL)
_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_KNOWN = {
    "apache license": "apache-2.0",
    "mit license": "mit",
    "bsd 3-clause": "bsd-3-clause",
    "gnu general public license": "gpl",
}
# Ids that a hub takes; it refuses a card with one that it does not know
_OF_HUB = re.compile(
    r"other|apache-2\.0|mit|isc|zlib|wtfpl|unlicense|mpl-2\.0|bsd(-[23]-clause)?|agpl-3\.0"
    r"|gpl(-[23]\.0)?|lgpl(-2\.1|-3\.0)?|cc0-1\.0|cc-by(-sa)?-3\.0|cc-by(-nc)?(-sa|-nd)?-4\.0"
    r"|odc-by|cdla-permissive-2\.0|gemma|llama(2|3|3\.[123]|4)|openrail"
    r"|(bigcode|bigscience|creativeml)-openrail-m|bigscience-bloom-rail-1\.0"
)
_MEANT = {  # by what packages say
    "apache 2.0": "apache-2.0",
    "apache license 2.0": "apache-2.0",
    "apache license, version 2.0": "apache-2.0",
    "mit license": "mit",
    "bsd 3-clause": "bsd-3-clause",
    "bsd 3-clause license": "bsd-3-clause",
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


def hub_lines(licence: str) -> list[str]:
    """What the header of a hub's card says of a licence that `licence_of` found."""
    ids = [_MEANT.get(one, one) for one in licence.split(_AND)]
    if all(map(_OF_HUB.fullmatch, ids)):
        return [f"license: {json.dumps(ids) if ids[1:] else ids[0]}"]
    name = re.sub(r"[^a-z0-9.]+", "-", licence).strip("-")
    return ["license: other", *([f"license_name: {json.dumps(name)}"] if name else [])]


def _of_card(folder: Path) -> str | None:
    try:
        front = _FRONT.match((folder / "README.md").read_text("utf-8", errors="replace"))
        header: Any = yaml.safe_load(front[1]) if front else None
    except (OSError, yaml.YAMLError):
        return None
    fields = cast("dict[str, Any]", header) if isinstance(header, dict) else {}
    told = fields.get("license")
    if told == "other":
        told = fields.get("license_name", told)
    ids = cast("list[Any]", told) if isinstance(told, list) else [told]
    return _AND.join(one.lower() for one in ids if isinstance(one, str)) or None


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
