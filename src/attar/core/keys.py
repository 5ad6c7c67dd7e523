"""Names made from content: the same input always gets the same key."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast


class _Unknown(str):
    """What stands for a key that is not known yet: no text of a user's, not even "?"."""

    __slots__ = ()


UNKNOWN = _Unknown("?")
_LENGTH = 24


def key_of(*parts: Any) -> str:
    """A short hash of plain values; the order of a mapping's entries does not matter.

    Returns UNKNOWN when any part is UNKNOWN, so that a plan can show what is not hashed yet.
    """
    if any(isinstance(part, _Unknown) for part in _leaves(parts)):
        return UNKNOWN
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


def seed_of(*parts: Any) -> int:
    """A 63-bit seed made from plain values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        for item in cast("Mapping[Any, Any]", value).values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in cast("list[Any]", value):
            yield from _leaves(item)
    else:
        yield value


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileHashes:
    """Content hashes, remembered by path, size and time of change.

    `memo` is a JSON file; it is only a shortcut, and a damaged one is ignored.
    """

    def __init__(self, memo: Path) -> None:
        self.memo = memo
        self._known: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError):
            self._known = _well_formed(json.loads(memo.read_text("utf-8")))

    def peek(self, path: Path) -> str:
        """The hash if it is remembered, else UNKNOWN; never reads the file."""
        known = self._known.get(str(path.resolve()))
        return known[1] if known is not None and known[0] == _stamp(path) else UNKNOWN

    def of(self, path: Path) -> str:
        """The hash, read from the file when it is not remembered."""
        digest = self.peek(path)
        if digest == UNKNOWN:
            digest = hash_file(path)
            self.remember({path: digest})
        return digest

    def remember(self, digests: Mapping[Path, str]) -> None:
        """Keep hashes that are known already."""
        for path, digest in digests.items():
            self._known[str(path.resolve())] = [_stamp(path), digest]
        self._save()

    def _save(self) -> None:
        draft = self.memo.with_suffix(f".{os.getpid()}.tmp")  # two processes may save at once
        try:
            self.memo.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(self._known), "utf-8")
            draft.replace(self.memo)
        except OSError:  # a lost shortcut costs time, never a result
            with suppress(OSError):
                draft.unlink()


def _well_formed(memo: Any) -> dict[str, list[Any]]:
    if not isinstance(memo, dict):
        return {}
    entries = cast("dict[str, Any]", memo).items()
    return {
        path: [stamp, digest]
        for path, entry in entries
        if isinstance(entry, list) and len(cast("list[Any]", entry)) == 2
        for stamp, digest in [cast("list[Any]", entry)]
        if isinstance(digest, str)
    }


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
