"""Pushing an export, or an artifact as it is, to a folder or to a model hub."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from attar.engine.store import readable, write_text
from attar.errors import Unreachable, UserError
from attar.export.artifact import find_artifact
from attar.export.card import CARD, card
from attar.export.export import check_place, draft_of
from attar.export.record import RECORD

HUB = "hub:"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push(ref: str | Path, to: str, private: bool = False, home: str | Path = ".attar") -> str:
    """Copy an export's folder whole, or an artifact with its card; its new path or address.

    `ref` is an export's folder, or a run's name, a key or a path as for `export`; `to` is a folder,
    or `hub:OWNER/NAME`. A hub is asked by its own client, with the login that this has.
    """
    folder = Path(ref).expanduser().absolute()
    text = None
    if not (folder / RECORD).is_file():
        artifact = find_artifact(str(ref), Path(home).expanduser().absolute())
        if artifact.key is None:
            raise UserError(
                f"{ref} is no export (it holds no {RECORD}) and nothing that Attar made. `attar "
                "export` makes an export of it"
            )
        folder, text = artifact.files.folder.resolve(), card(artifact)
    if to.startswith(HUB):
        with TemporaryDirectory(prefix="attar-push-") as place:
            whole = folder if text is None else _gathered(folder, text, Path(place))
            return _to_hub(whole, to.removeprefix(HUB), private)
    place = Path(to).expanduser().absolute()
    if folder in place.parents:
        raise UserError(f"{place} lies within {folder}. Name a folder outside of it")
    check_place(place)
    with draft_of(place) as draft, readable(f"{place} cannot be written", place.parent):
        shutil.copytree(folder, draft, dirs_exist_ok=True)
        if text is not None:
            write_text(draft / CARD, text)
    return str(place)


def _gathered(folder: Path, text: str, place: Path) -> Path:
    """An artifact's files beside its card, none of them copied."""
    for path in folder.rglob("*"):
        if path.is_file():
            link = place / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    write_text(place / CARD, text)
    return place


def _to_hub(folder: Path, name: str, private: bool) -> str:
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
            f"{folder} could not be pushed to {name}: {first}. Log in with `hf auth login`, or "
            "name a folder"
        ) from None
