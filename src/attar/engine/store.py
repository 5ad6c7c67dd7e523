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

from attar.core.keys import FileHashes
from attar.errors import StoreError, UserError

FORMAT = 1
STEP_FILE = "step.json"
REPORT_FILE = "report.json"


class Store:
    """Everything Attar keeps, under one home folder."""

    def __init__(self, home: Path) -> None:
        self.home = home.expanduser().absolute()
        self.hashes = FileHashes(self.home / "hashes.json")

    def prepare(self) -> None:
        """Make the folders, check the format, and remove what a killed process left."""
        if self.home.exists() and not self.home.is_dir():
            raise UserError(
                f"the store's home {self.home} is a file. Name a folder with --home, or move the "
                "file away"
            )
        with readable(f"the store at {self.home} cannot be written"):
            for name in ("store", "drafts", "scratch", "measures", "runs"):
                (self.home / name).mkdir(parents=True, exist_ok=True)
            mark = self.home / "FORMAT"
            if not mark.exists():
                write_text(mark, f"{FORMAT}\n")
            elif mark.read_text("utf-8").strip() != str(FORMAT):
                raise UserError(
                    f"the store at {self.home} has format {mark.read_text('utf-8').strip()}, and "
                    f"this Attar writes format {FORMAT}. Name another folder with --home"
                )
            for draft in (self.home / "drafts").iterdir():
                if not _alive(int(draft.name.rpartition(".")[2] or 0)):
                    shutil.rmtree(draft, ignore_errors=True)

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
            with readable(f"artifact {key} could not be written to {self.home}"):
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir(parents=True)
                yield path
                _flush(path)
                _publish(path, self.path(key))
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def step_of(self, key: str) -> dict[str, Any]:
        """What made the artifact: kind, settings, parent, task."""
        return _read_json(self.path(key) / STEP_FILE)

    def report_of(self, key: str) -> dict[str, Any]:
        """Notes, curves, seconds and warnings of the step that made the artifact."""
        return _read_json(self.path(key) / REPORT_FILE)

    def measurement(self, key: str) -> dict[str, Any] | None:
        """A measurement that was kept, or None; a damaged one is measured again."""
        try:
            return json.loads((self.home / "measures" / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def keep_measurement(self, key: str, plain: dict[str, Any]) -> None:
        """Keep a measurement beside the artifacts."""
        with readable("a measurement could not be kept"):
            write_text(self.home / "measures" / f"{key}.json", json.dumps(plain))

    def run_folder(self, name: str) -> Path:
        """The folder of a run: its lock, its report."""
        path = self.home / "runs" / name
        with readable(f"the run's folder {path} cannot be made"):
            path.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def readable(what: str) -> Generator[None]:
    """Turn a failure of the disk into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "the disk is full. Free some space and run the same command: it goes on here"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "it may not be written to. Name another folder with --home"
        else:
            advice = str(error)
        raise StoreError(f"{what}: {advice}") from error
    except Exception as error:
        # safetensors and others report a full disk as an error of their own
        if "No space left" in str(error) or "os error 28" in str(error):
            raise StoreError(
                f"{what}: the disk is full. Free some space and run the same command: it goes on "
                "here"
            ) from error
        raise


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
            f"{path} is damaged ({error}). Remove the folder {path.parent}; it will be made again"
        ) from None


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _publish(draft: Path, final: Path) -> None:
    try:
        draft.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return  # another process was first; its artifact has the same content
    handle = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
