"""Artifacts by key: present means complete.

A folder under `store/` is written as a draft, flushed, and renamed once it is whole. Two
processes that make the same artifact race, and the loser discards its draft.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attar.core.disk import sync
from attar.core.keys import FileHashes
from attar.errors import StoreError, UserError

FORMAT = 1
STEP_FILE = "step.json"
REPORT_FILE = "report.json"
ELSEWHERE = "name another folder with --home"


class Store:
    """Everything Attar keeps, under one home folder."""

    def __init__(self, home: Path) -> None:
        self.home = home.expanduser().absolute()
        self._check()
        self.hashes = FileHashes(self.home / "hashes.json")

    def prepare(self) -> None:
        """Make the folders, and remove what a killed process left."""
        with readable(f"the store at {self.home} cannot be written", self.home):
            for name in ("store", "drafts", "scratch", "measures", "runs"):
                (self.home / name).mkdir(parents=True, exist_ok=True)
            mark = self.home / "FORMAT"
            if not mark.exists():
                write_text(mark, f"{FORMAT}\n")
            for draft in (self.home / "drafts").iterdir():
                if not alive(int(draft.name.rpartition(".")[2] or 0)):
                    shutil.rmtree(draft, ignore_errors=True)

    def _check(self) -> None:
        """Refuse a file, and a store of another format."""
        if self.home.exists() and not self.home.is_dir():
            raise UserError(
                f"the store's home {self.home} is a file. Name a folder with --home, or move the "
                "file away"
            )
        mark = self.home / "FORMAT"
        with readable(f"the store at {self.home} cannot be read", self.home):
            found = mark.read_text("utf-8").strip() if mark.exists() else str(FORMAT)
        if found != str(FORMAT):
            raise UserError(
                f"the store at {self.home} has format {found[:20]}, and this Attar reads and "
                f"writes format {FORMAT}. Upgrade Attar, or name another folder with --home"
            )

    def path(self, key: str) -> Path:
        """Where the artifact of this key is, or will be."""
        return self.home / "store" / key

    def has(self, key: str) -> bool:
        """Whether the artifact is there, and so complete."""
        return self.path(key).is_dir()

    def keys(self) -> list[str]:
        """Every key in the store."""
        folder = self.home / "store"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def find(self, prefix: str) -> str:
        """The one key that begins with `prefix`; UserError when there is none, or several."""
        found = [key for key in self.keys() if key.startswith(prefix)] if prefix else []
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{prefix!r} begins {len(found)} keys: {', '.join(found)}. Write more")
        raise UserError(f"no artifact in {self.home} has a key that begins with {prefix!r}")

    def scratch(self, key: str) -> Path:
        """A folder for what a step saves under way; it outlives a crash."""
        path = self.home / "scratch" / key
        path.mkdir(parents=True, exist_ok=True)
        return path

    def clear_scratch(self, key: str) -> None:
        """Remove what a finished step saved under way."""
        shutil.rmtree(self.home / "scratch" / key, ignore_errors=True)

    @contextmanager
    def draft(self, key: str) -> Generator[Path]:
        """A folder to fill; it becomes the artifact when the block ends without an error."""
        path = self.home / "drafts" / f"{key}.{os.getpid()}"
        try:
            with readable(f"artifact {key} could not be written to {self.home}", self.home):
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir(parents=True)
                yield path
                flush(path)
                _publish(path, self.path(key))
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def step_of(self, key: str) -> dict[str, Any]:
        """What made the artifact: kind, settings, parent, task."""
        return _read_json(self.path(key) / STEP_FILE)

    def report_of(self, key: str) -> dict[str, Any]:
        """Notes, curves, seconds and warnings of the step that made the artifact."""
        return _read_json(self.path(key) / REPORT_FILE)

    def verify(self, key: str) -> None:
        """Raise StoreError where a file of the artifact is not what was written.

        Hashes are remembered by path, size and time, so that this costs next to nothing.
        """
        wanted: dict[str, str] = self.step_of(key).get("files", {})
        for name, digest in wanted.items():
            path = self.path(key) / name
            if path.is_file() and self.hashes.of(path) == digest:
                continue
            what = "is not what was written there" if path.is_file() else "is gone"
            raise StoreError(
                f"{path} {what}. Remove the folder {path.parent} and run again: it will be made "
                "again"
            )

    def write(self, path: Path, text: str) -> None:
        """Write a file of a run, whole or not at all."""
        with readable(f"{path} could not be written", self.home):
            write_text(path, text)

    def measurement(self, key: str) -> dict[str, Any] | None:
        """A measurement that was kept, or None; a damaged one is measured again."""
        try:
            return json.loads((self.home / "measures" / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def keep_measurement(self, key: str, plain: dict[str, Any]) -> None:
        """Keep a measurement beside the artifacts."""
        self.write(self.home / "measures" / f"{key}.json", json.dumps(plain))

    def run_folder(self, name: str) -> Path:
        """The folder of a run: its lock, its report."""
        path = self.home / "runs" / name
        with readable(f"the run's folder {path} cannot be made", self.home):
            path.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def readable(what: str, place: Path, instead: str = ELSEWHERE) -> Generator[None]:
    """Turn a failure of the disk that `place` is on into one clear line.

    `instead` is what else a user can do who may not write there.
    """
    try:
        yield
    except OSError as error:
        # NumPy counts what it could not write, and gives no number of the system's
        short = error.errno is None and " requested and " in str(error)
        if short or error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = _full(place)
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = f"{error.strerror}. Mend that, or {instead}"
        else:
            advice = str(error)
        raise StoreError(f"{what}: {advice}") from error
    except Exception as error:
        # safetensors and others report a full disk as an error of their own
        if "No space left" in str(error) or "os error 28" in str(error):
            raise StoreError(f"{what}: {_full(place)}") from error
        raise


def _full(place: Path) -> str:
    there = next(path for path in (place, *place.parents) if path.exists())
    return (
        f"the disk is full, {shutil.disk_usage(there).free:,} bytes are free. Free some space and "
        "run the same command: it goes on here"
    )


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} is damaged ({error}). Remove the folder {path.parent} and run again: it will "
            "be made again"
        ) from None


def flush(folder: Path) -> None:
    """Put every file of a folder on disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def _publish(draft: Path, final: Path) -> None:
    try:
        draft.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return  # another process was first; its artifact has the same content
    sync(final.parent)


def alive(pid: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
