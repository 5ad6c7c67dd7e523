"""A folder that is filled beside the one wanted, and takes its place once it is whole."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from attar.engine.store import flush, readable
from attar.errors import AttarError
from attar.export._alone import alone

# Beside the folder, under names that nobody gives to files of their own
_DRAFT, _OLD, _LOCK = ".attar-draft", ".attar-old", ".attar-lock"
_NAMED = re.compile(rf"\.([^/]+)\.\d+{re.escape(_DRAFT)}")


@contextmanager
def draft_of(
    folder: Path,
    say: Callable[[str], None] = lambda _: None,
    instead: str = "name another folder with --out",
) -> Generator[Path]:
    """A folder to fill beside the one wanted; it takes its place once it is whole and on disk.

    One at a time fills it: another that wants the same place waits, and then replaces it. Of a
    link the folder that it leads to is replaced. `instead` is what else a user can do who may not
    write there.
    """
    folder = folder.resolve()
    begins = f".{folder.name}.{os.getpid()}"
    draft, old = (folder.with_name(f"{begins}{ending}") for ending in (_DRAFT, _OLD))
    what = f"{folder} could not be written"
    with readable(what, folder.parent, instead), alone(lock_of(folder), say, instead):
        try:
            _sweep(folder)
            draft.mkdir()
            with _told(draft, folder):
                yield draft
            flush(draft)
            if folder.exists():
                folder.rename(old)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            if old.exists() and not folder.exists():
                old.rename(folder)
            shutil.rmtree(old, ignore_errors=True)


def lock_of(folder: Path) -> Path:
    """What whoever fills or changes a folder, links resolved, holds meanwhile."""
    return folder.with_name(f".{folder.name}{_LOCK}")


def _sweep(folder: Path) -> None:
    """Remove what killed processes left beside an export, and put back one they were replacing."""
    begins = f".{folder.name}."
    for ending in (_OLD, _DRAFT):
        for left in folder.parent.glob(f"{escape(begins)}*{ending}"):
            if not left.name.removeprefix(begins).removesuffix(ending).isdigit():
                continue
            if ending == _OLD and not folder.exists():
                left.rename(folder)
            else:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _told(draft: Path, folder: Path) -> Generator[None]:
    """Tell what fails while a draft is filled as what it is, by the folder's own name.

    What the disk says of the draft goes on; a file that cannot be read, or an engine or a server
    that does not answer, is told here, for it is no failure to write.
    """
    try:
        yield
    except AttarError as error:
        error.args = tuple(without_drafts(str(arg)) for arg in error.args)
        raise
    except OSError as error:
        if _of_writing(error, draft):
            raise
        raise AttarError(
            f"{folder} was not made: {error}. Mend that, and run the same command again"
        ) from error


def _of_writing(error: OSError, draft: Path) -> bool:
    if error.filename is None:
        return type(error) is OSError  # its kinds are of connections, processes and the like
    return Path(os.fsdecode(error.filename)).is_relative_to(draft)


def without_drafts(text: str) -> str:
    """The text with the folders' own names in place of their drafts', which are gone soon."""
    return _NAMED.sub(r"\1", text)
