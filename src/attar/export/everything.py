"""Every target that fits an artifact, and every engine that runs it, side by side."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.engine.store import Store
from attar.errors import AttarError, UserError
from attar.export._alone import alone
from attar.export._draft import lock_of
from attar.export._reference import Reference
from attar.export.artifact import Artifact, find_artifact
from attar.export.export import (
    NOT_TIMED,
    USUAL,
    Say,
    Wanted,
    export_beside,
    exports_of,
    timed,
    usual_folder,
)
from attar.export.record import Exported, in_engines, named_folder, read_record, write_record
from attar.export.target import TARGETS, find
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
        folder = Path(out) / target if out else usual_folder(Path(home), artifact, target)
        try:
            done = export_beside(reference, find(target), folder, wanted, say)
            exports += in_engines(done.folder, done.record)
        except Exception as error:  # whatever a writer or an engine raises
            skipped[target] = _told(error)
    if not exports:
        reasons = "; ".join(f"{target}: {text}" for target, text in skipped.items())
        raise UserError(f"no target holds {ref}. {reasons}")
    return All(exports, skipped)


def time_again(ref: str, home: Path, threads: int | None = None, say: Say = lambda _: None) -> All:
    """An export's folder, or an artifact's exports under `home`, timed anew in every engine here.

    Their records and cards tell the new figures, and of an engine that fails now the older ones,
    if they are of this machine; the card of an export whose artifact is not on this machine is left
    as it is.
    """
    exports: list[Exported] = []
    skipped: dict[str, str] = {}
    artifact, there = _named(ref, home)
    for folder, record in there.items():
        target = find(record["target"])
        if not target.timed:
            continue
        found: dict[str, dict[str, Any]] = {}
        names = [engine.name for engine in target.engines(folder)] or [target.engine]
        for one in (Exported(folder, record, name) for name in names):
            say(f"timing {one.target} in {one.engine}, in a fresh process")
            try:
                speed = timed(one, threads)
                found[one.engine] = {"version": find_engine(one.engine).version(), "speed": speed}
            except Exception as error:  # whatever an engine raises
                skipped[f"{one.target} in {one.engine}"] = _told(error)
        if not found:
            continue
        with _undisturbed(folder, say):
            if read_record(folder) != record:
                skipped[target.name] = "it was exported anew while it was timed. Time it again"
                continue
            _keep(artifact, folder, record, found)
        exports += [Exported(folder, record, name) for name in found]
    if not exports and not skipped:
        raise UserError(
            f"{ref} is or has no export under {home} that is timed. `attar export REF --all` makes "
            "them"
        )
    return All(exports, skipped)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, AttarError) else f"{type(error).__name__}: {error}"


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


def _undisturbed(folder: Path, say: Say) -> AbstractContextManager[None]:
    """No export goes there meanwhile; none can where nothing may be written beside it."""
    folder = folder.resolve()
    return alone(lock_of(folder), say) if os.access(folder.parent, os.W_OK) else nullcontext()


def _keep(
    artifact: Artifact | None, folder: Path, record: dict[str, Any], found: dict[str, Any]
) -> None:
    """Write the figures of now in the place of those of another time, and of another machine."""
    here = environment()
    if record["environment"] != here:
        for each in record["engines"].values():
            each.pop("speed", None)
    for engine, figures in found.items():
        record["engines"].setdefault(engine, {}).update(figures)
    record.pop("not_run", None)
    if "warnings" in record:
        done = tuple(f"{engine}{NOT_TIMED}" for engine in found)
        record["warnings"] = [text for text in record["warnings"] if not text.startswith(done)]
    record["environment"] = here
    write_record(artifact, folder, record)
