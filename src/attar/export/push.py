"""Pushing an export, or an artifact as it is, to a folder or to a model hub."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from attar.engine.store import readable, write_text
from attar.errors import Unreachable, UserError
from attar.export.artifact import find_artifact
from attar.export.card import CARD, card
from attar.export.export import draft_of, taken
from attar.export.record import RECORD, named_folder

HUB = "hub:"
_OF_THE_STORE = ("step.json", "report.json")
_TAG = "\n- attar\n"  # of every card
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push(ref: str | Path, to: str, private: bool = False, home: str | Path = ".attar") -> str:
    """Copy an export's folder whole, or an artifact with its card; its new path or address.

    `ref` is an export's folder, or a run's name, a key or a path as for `export`; `to` is a folder,
    or `hub:OWNER/NAME`. A hub is asked by its own client, with the login that this has. Of an
    artifact its files go, and not what the store knows of how they were made.
    """
    there = _Pushed.of(ref, Path(home).expanduser().absolute())
    if to.startswith(HUB):
        if there.text is None:
            return _to_hub(there.folder, to.removeprefix(HUB), private, str(ref))
        with TemporaryDirectory(prefix="attar-push-") as links:
            there.fill(Path(links), os.symlink)
            return _to_hub(Path(links), to.removeprefix(HUB), private, str(ref))
    place = Path(to).expanduser().absolute()
    if there.folder in place.parents:
        raise UserError(f"{place} lies within {there.folder}. Name a folder outside of it")
    there.check(place)
    with draft_of(place) as draft, readable(f"{place} cannot be written", place.parent):
        there.fill(draft)
    return str(place)


@dataclass(frozen=True)
class _Pushed:
    """The folder of an export, or of an artifact, and then the text of its card."""

    folder: Path
    text: str | None = None

    @classmethod
    def of(cls, ref: str | Path, home: Path) -> _Pushed:
        """What a user's REF names."""
        folder = named_folder(ref, home)
        if folder is not None:
            return cls(folder)
        artifact = find_artifact(str(ref), home)
        if artifact.key is None:
            raise UserError(
                f"{ref} is no export (it holds no {RECORD}) and no artifact of {home}. --home "
                "names another, and `attar export` makes an export of any model"
            )
        return cls(artifact.files.folder.resolve(), card(artifact))

    def check(self, place: Path) -> None:
        """Refuse a place that holds something else; what was pushed there before is replaced."""
        former = (place / RECORD).is_file()
        if self.text is not None:
            former = not former and (place / "config.json").is_file() and _TAG in _card_of(place)
        if taken(place) and not former:
            raise UserError(f"{place} is there and holds something else. Name another folder")

    def fill(self, place: Path, put: Callable[[str, str], object] = shutil.copy2) -> None:
        """Put all files there, an artifact's beside its card; `put` copies one, or links to it."""
        ignored = None if self.text is None else shutil.ignore_patterns(*_OF_THE_STORE)
        shutil.copytree(self.folder, place, dirs_exist_ok=True, ignore=ignored, copy_function=put)
        if self.text is not None:
            write_text(place / CARD, self.text)


def _card_of(place: Path) -> str:
    path = place / CARD
    return path.read_text("utf-8", errors="replace") if path.is_file() else ""


def _to_hub(folder: Path, name: str, private: bool, ref: str) -> str:
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no repository's name; write {HUB}OWNER/NAME")
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder))
    except Exception as error:  # the hub's client raises errors of many libraries
        first = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise Unreachable(
            f"{ref} could not be pushed to {name}: {first}. Log in with `hf auth login`, or "
            "name a folder"
        ) from None
