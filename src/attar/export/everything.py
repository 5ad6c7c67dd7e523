"""Every target that fits an artifact, and every engine that runs it, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.engine.store import Store
from attar.errors import AttarError, UserError
from attar.export.artifact import Artifact, find_artifact
from attar.export.export import (
    USUAL,
    Say,
    Wanted,
    default_folder,
    export_beside,
    exports_of,
    timed,
)
from attar.export.record import Exported, in_engines, named_folder, read_record, write_record
from attar.export.target import TARGETS, find
from attar.export.verify import Reference
from attar.measure.machine import environment
from attar.runtimes import find as find_engine


@dataclass(frozen=True)
class All:
    """What came of exporting to every target: the exports, and why the others were left out.

    An export is there once for each engine that runs it.
    """

    exports: list[Exported]
    skipped: dict[str, str]

    @property
    def fastest(self) -> Exported | None:
        """The one to take on this machine, if any was timed."""
        known = [one for one in self.exports if rate(one) is not None]
        return max(known, key=lambda one: rate(one) or 0.0, default=None)


def rate(one: Exported) -> float | None:
    """Tokens or texts per second."""
    speed = one.speed
    figure = speed.get("tokens_per_second") or speed.get("texts_per_second")
    return None if figure is None else figure.value


def export_all(
    ref: str | Path,
    out: str | Path | None = None,
    home: str | Path = ".attar",
    wanted: Wanted = USUAL,
    say: Say = lambda _: None,
) -> All:
    """Export to every target that holds the artifact and whose packages are installed.

    `out` is the folder that holds a folder for each. One that fails leaves the others alone.
    """
    exports: list[Exported] = []
    skipped: dict[str, str] = {}
    artifact = find_artifact(str(ref), Path(home))
    reference = Reference(artifact)
    for target in TARGETS.names():
        folder = Path(out) / target if out else default_folder(Path(home), artifact.name, target)
        try:
            done = export_beside(reference, find(target), folder, wanted, say)
            exports += in_engines(done.folder, done.record)
        except AttarError as error:
            skipped[target] = str(error)
        except Exception as error:  # whatever a writer or an engine raises
            skipped[target] = f"{type(error).__name__}: {error}"
    if not exports:
        reasons = "; ".join(f"{target}: {text}" for target, text in skipped.items())
        raise UserError(f"no target holds {ref}. {reasons}")
    return All(exports, skipped)


def time_again(ref: str, home: Path, threads: int | None = None, say: Say = lambda _: None) -> All:
    """An export's folder, or an artifact's exports under `home`, timed anew in every engine here.

    Their records and cards tell the new figures, and no older ones; the card of an export whose
    artifact is not on this machine is left as it is.
    """
    exports: list[Exported] = []
    skipped: dict[str, str] = {}
    artifact, there = _named(ref, home)
    for folder, record in there.items():
        target = find(record["target"])
        if not target.timed:
            continue
        speeds: dict[str, Any] = {}
        names = [engine.name for engine in target.engines(folder)] or [target.engine]
        for one in (Exported(folder, record, name) for name in names):
            say(f"timing {one.target} in {one.engine}, in a fresh process")
            try:
                speeds[one.engine] = timed(one, threads)
                exports.append(one)
            except AttarError as error:
                skipped[f"{one.target} in {one.engine}"] = str(error)
        if speeds:
            _keep(artifact, folder, record, speeds)
    if not exports and not skipped:
        raise UserError(
            f"{ref} is or has no export under {home} that is timed. `attar export REF --all` makes "
            "them"
        )
    return All(exports, skipped)


def _named(ref: str, home: Path) -> tuple[Artifact | None, dict[Path, dict[str, Any]]]:
    """The exports that are meant, with their records, and the artifact that they were made of.

    None where that is not at hand as it was then: the card is then left as it is.
    """
    folder = named_folder(ref, Store(home).home)
    if folder is None:
        artifact = find_artifact(ref, home)
        return artifact, exports_of(artifact, home)
    record = read_record(folder)
    source = record["source"]
    for name in (source["name"], source["path"]):
        try:
            artifact = find_artifact(str(name), home)
        except AttarError:
            continue
        if artifact.source == source and artifact.stamp == record.get("stamp"):
            return artifact, {folder: record}
    return None, {folder: record}


def _keep(
    artifact: Artifact | None, folder: Path, record: dict[str, Any], speeds: dict[str, Any]
) -> None:
    """Write the figures of now in the place of those of another time and machine."""
    for found in record["engines"].values():
        found.pop("speed", None)
    for engine, speed in speeds.items():
        found = record["engines"].setdefault(engine, {})
        found |= {"version": find_engine(engine).version(), "speed": speed}
    record.pop("not_run", None)
    record["environment"] = environment()
    write_record(artifact, folder, record)
