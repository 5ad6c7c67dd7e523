"""An export's record: what it was made of, how it was verified, how each engine runs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.core.report import Figure
from attar.engine.store import write_text
from attar.errors import AttarError
from attar.export.artifact import Artifact, run_folders
from attar.export.card import CARD, card

RECORD = "attar-export.json"
FORMAT = 2  # 1 told of one engine alone
_ALWAYS = {"format", "source", "target", "reads_with", "rounded", "environment", "bytes", "grids"}


@dataclass(frozen=True)
class Exported:
    """An export in one engine: its folder, its record as attar-export.json holds it, the engine."""

    folder: Path
    record: dict[str, Any]
    engine: str

    @property
    def target(self) -> str:
        """The container that it is in."""
        return self.record["target"]

    @property
    def outputs(self) -> dict[str, Any]:
        """How far the engine's answers are from PyTorch's; empty where nobody compared them."""
        return self._found.get("outputs", {})

    @property
    def speed(self) -> dict[str, Figure]:
        """What was timed in the engine, by name."""
        return {k: Figure.model_validate(v) for k, v in self._found.get("speed", {}).items()}

    @property
    def _found(self) -> dict[str, Any]:
        return self.record["engines"].get(self.engine, {})


def named_folder(ref: str | Path, home: Path) -> Path | None:
    """The folder of an export that a REF names; None where it is a run's name or anything else."""
    folder = Path(ref).expanduser().absolute()
    named = str(ref) not in run_folders(home) and (folder / RECORD).is_file()
    return folder if named else None


def made_of(record: dict[str, Any], artifact: Artifact) -> bool:
    """Whether an export was made of this artifact, whose files are what they were then."""
    theirs, ours = record["source"], artifact.source
    if artifact.key is not None:
        return theirs["key"] == ours["key"]
    return theirs["path"] == ours["path"] and record.get("stamp") == artifact.stamp


def in_engines(folder: Path, record: dict[str, Any]) -> list[Exported]:
    """An export in every engine that its record tells of, first in the one that read it back."""
    names = dict.fromkeys((record["reads_with"], *record["engines"]))
    return [Exported(folder, record, name) for name in names]


def write_record(artifact: Artifact | None, folder: Path, record: dict[str, Any]) -> None:
    """Write an export's record, and its card where the artifact is at hand; they say the same."""
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")
    if artifact is not None:
        write_text(folder / CARD, card(artifact, [record]))


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an export. Raises AttarError where there is none, or it is damaged.

    What one of the first format tells of its only engine is told under the engine's name.
    """
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AttarError(f"{folder / RECORD} cannot be read ({error}). Export again") from None
    if not isinstance(record, dict) or not record.keys() >= _ALWAYS:
        raise AttarError(f"{folder / RECORD} is no record of an export. Export again")
    if record["format"] > FORMAT:
        raise AttarError(f"{folder / RECORD} is of a newer Attar. Update it, or export again")
    return record if "engines" in record else _of_first_format(record)


def _of_first_format(record: dict[str, Any]) -> dict[str, Any]:
    found = {
        "version": record.pop("engine", None),
        "outputs": record.get("verified", {}).pop("outputs", None),
        "speed": record.pop("speed", None),
    }
    told = {name: each for name, each in found.items() if each is not None}
    return {**record, "format": FORMAT, "engines": {record["reads_with"]: told} if told else {}}
