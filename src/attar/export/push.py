"""Pushing an export to a folder or to a model hub."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from attar.engine.store import readable
from attar.errors import Unreachable, UserError
from attar.export.export import check_place, draft_of
from attar.export.record import RECORD

HUB = "hub:"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push(folder: Path, to: str, private: bool = False) -> str:
    """Copy an export's folder whole; where it is now, as a path or an address.

    `to` is a folder, or `hub:OWNER/NAME`. A hub is asked by its own client, with the login that
    this has.
    """
    folder = folder.expanduser().absolute()
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder} is no export: it holds no {RECORD}. `attar export` makes one")
    if to.startswith(HUB):
        return _to_hub(folder, to.removeprefix(HUB), private)
    place = Path(to).expanduser().absolute()
    if folder in place.parents:
        raise UserError(f"{place} lies within {folder}. Name a folder outside of it")
    check_place(place)
    with draft_of(place) as draft, readable(f"{place} cannot be written", place.parent):
        shutil.copytree(folder, draft, dirs_exist_ok=True)
    return str(place)


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
