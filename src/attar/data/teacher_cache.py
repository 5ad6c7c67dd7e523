"""What a teacher said of rows of tokens, on disk: shards of safetensors, found by the tokens.

A row is found by a digest of its tokens, and so whatever order, dataset, split or length of epoch
it comes in; what it holds cannot belong to other tokens. Which teacher, which tokenizer and what
is kept of its answers is said by the folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attar.core.disk import sync
from attar.core.keys import hash_file

Tensors = dict[str, Tensor]
SHARD = 1 << 23  # bytes that are gathered before they are written: what a crash may lose
_DIGEST = 16
_NAME = 32  # characters of a shard's hash that name it
_OLD = 3600.0  # seconds after which a draft is a dead process's


def digest(ids: Tensor) -> bytes:
    """What a row is found by: a hash of its tokens."""
    data = ids.to("cpu", torch.int64).contiguous().numpy().tobytes()
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


class TeacherCache:
    """Rows by digest. Each row is a few tensors, of as many positions each, [positions, ...].

    Rows wait in memory until `shard` bytes are together; those are written as a draft, flushed,
    and renamed to their own hash, so that a shard that is there is whole, and two processes that
    write do not meet. A damaged shard counts as not there. Once all shards under `among` (beside
    this folder by default) hold `limit` bytes together, or the disk is full, nothing more is kept,
    and `warn` is told so once.
    """

    def __init__(
        self,
        folder: Path,
        limit: float = float("inf"),
        warn: Callable[[str], None] = lambda _: None,
        shard: int = SHARD,
        among: Path | None = None,
    ) -> None:
        self.folder, self._warn, self._shard = folder, warn, shard
        self._waiting: dict[bytes, Tensors] = {}
        self._size = 0
        self._places: dict[bytes, tuple[Path, int, int]] = {}
        self._trusted: set[Path] = set()
        self._full = False
        folder.mkdir(parents=True, exist_ok=True)
        shards = (among or folder.parent).rglob("*.safetensors")
        self._left = limit - sum(path.stat().st_size for path in shards)
        for draft in folder.glob("*.tmp"):
            if time.time() - draft.stat().st_mtime > _OLD:
                draft.unlink(missing_ok=True)
        for path in sorted(folder.glob("*.safetensors")):
            self._note(path)

    def __len__(self) -> int:
        return len(self._places.keys() | self._waiting.keys())

    def get(self, name: bytes) -> Tensors | None:
        """A row, or None where it is not there."""
        if name in self._waiting:
            return self._waiting[name]
        if name not in self._places:
            return None
        path, begin, end = self._places[name]
        try:
            self._check(path)
            with safe_open(path, "pt") as file:
                names = set(file.keys()) - {"digests", "ends"}
                return {key: file.get_slice(key)[begin:end] for key in names}
        except (OSError, SafetensorError, ValueError):
            lost = [row for row, place in self._places.items() if place[0] == path]
            for row in lost:
                del self._places[row]
            self._warn(f"{path} is damaged, and its {len(lost)} rows are asked for again")
            path.unlink(missing_ok=True)
            return None

    def put(self, name: bytes, row: Tensors) -> None:
        """Keep a row."""
        if self._full:
            return
        self._waiting[name] = row
        self._size += sum(tensor.nbytes for tensor in row.values())
        if self._size >= self._shard:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        rows, size = self._waiting, self._size
        if not rows or self._full:
            return
        if size > self._left:
            self._stop("it holds what `cache_limit` allows")
            return
        try:
            path = self._write(rows)
        except (OSError, SafetensorError) as error:
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            full = full or "No space left" in str(error) or "os error 28" in str(error)
            self._stop("the disk is full" if full else str(error))
            return
        self._left -= size
        self._waiting, self._size = {}, 0
        self._trusted.add(path)
        self._note(path)

    def _write(self, rows: dict[bytes, Tensors]) -> Path:
        draft = self.folder / f"{os.getpid()}-{time.monotonic_ns()}.tmp"
        try:
            save_file(_joined(rows), draft)
            sync(draft)
            path = self.folder / f"{hash_file(draft)[:_NAME]}.safetensors"
            draft.replace(path)
            sync(self.folder)
        finally:
            draft.unlink(missing_ok=True)
        return path

    def _note(self, path: Path) -> None:
        """Take up where the rows of a shard are; a damaged one has none."""
        try:
            with safe_open(path, "pt") as file:
                digests, ends = file.get_tensor("digests"), file.get_tensor("ends").tolist()
        except (OSError, SafetensorError):
            self._warn(f"{path} is damaged, and its rows are asked for again")
            path.unlink(missing_ok=True)
            return
        names = [bytes(row) for row in digests.numpy()]
        for name, begin, end in zip(names, [0, *ends], ends, strict=False):
            self._places[name] = path, begin, end

    def _check(self, path: Path) -> None:
        """Raise ValueError where a shard is not what was written; it is read once for that."""
        if path in self._trusted:
            return
        if hash_file(path)[:_NAME] != path.stem:
            raise ValueError(path)
        self._trusted.add(path)

    def _stop(self, why: str) -> None:
        self._full = True
        self._waiting, self._size = {}, 0
        self._warn(
            f"the teacher cache {self.folder} keeps nothing more: {why}. The teacher is asked "
            "for the rest in every epoch. Raise `cache_limit`, or delete folders beside it"
        )


def _joined(rows: dict[bytes, Tensors]) -> Tensors:
    """Rows one after another, with their digests and where each ends."""
    names = list(next(iter(rows.values())))
    joined = {key: torch.cat([row[key] for row in rows.values()]).contiguous() for key in names}
    counts = torch.tensor([len(row[names[0]]) for row in rows.values()])
    joined["digests"] = torch.tensor([list(name) for name in rows], dtype=torch.uint8)
    joined["ends"] = counts.cumsum(0)
    return joined
