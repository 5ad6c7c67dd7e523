"""Pushing an export, or an artifact as it is, to a folder or to a model hub."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from attar.engine.store import write_text
from attar.errors import StoreError, Unreachable, UserError
from attar.export._draft import draft_of
from attar.export.artifact import find_artifact
from attar.export.card import CARD, card
from attar.export.export import taken
from attar.export.record import RECORD, named_folder, read_record

HUB = "hub:"
_OF_THE_STORE = ("step.json", "report.json")
_TAG = "\n- attar\n"  # of every card
_NO_LOGIN = (401, 403)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push(ref: str | Path, to: str, private: bool = False, home: str | Path = ".attar") -> str:
    """Copy an export's folder whole, or an artifact with its card; its new path or address.

    `ref` is an export's folder, or a run's name, a key or a path as for `export`; `to` is a folder,
    or `hub:OWNER/NAME`. A hub is asked by its own client, with the login that this has. Of an
    artifact its files go, and not what the store knows of how they were made; of an export, not
    where on this machine its model lies.
    """
    there = _Pushed.of(ref, Path(home).expanduser().absolute())
    if to.startswith(HUB):
        with TemporaryDirectory(prefix="attar-push-") as links:
            there.fill(Path(links), os.symlink)
            return _to_hub(Path(links), to.removeprefix(HUB), private, str(ref))
    place = Path(to).expanduser().absolute()
    if there.folder.resolve() in place.resolve().parents:
        raise UserError(f"{place} lies within {there.folder}. Name a folder outside of it")
    there.check(place)
    with draft_of(place, instead="name another folder") as draft:
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
        ignored = shutil.ignore_patterns(*((RECORD,) if self.text is None else _OF_THE_STORE))
        try:
            shutil.copytree(
                self.folder, place, dirs_exist_ok=True, ignore=ignored, copy_function=put
            )
        except shutil.Error as error:  # of each file: from where, to where, and why not
            source, _, why = error.args[0][0]
            raise StoreError(f"{source} could not be copied: {why}") from None
        if self.text is not None:
            write_text(place / CARD, self.text)
            return
        record = read_record(self.folder)
        record["source"]["path"] = None  # nobody else's business
        write_text(place / RECORD, json.dumps(record, indent=1) + "\n")


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
        told = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = "Log in with `hf auth login`" if status in _NO_LOGIN else "Mend that"
        raise Unreachable(
            f"{ref} could not be pushed to {name}: {told}. {advice}, or name a folder"
        ) from None
