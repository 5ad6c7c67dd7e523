"""The export that a server runs: the fastest that is there, or one that is made on first use.

Never one that was rounded a second time: what is served is what the artifact holds.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from attar.engine.store import readable
from attar.errors import AttarError, MissingPackage
from attar.export.artifact import REPORT, Artifact, find_artifact
from attar.export.everything import rate
from attar.export.export import Say, Wanted, default_folder, export
from attar.export.record import RECORD, Exported, in_engines, read_record
from attar.export.target import TARGETS, find
from attar.measure.machine import cores, processor
from attar.models.load import config_of, task_of
from attar.models.mapped import trim
from attar.models.source import PACKAGE
from attar.runtimes import engine_of
from attar.runtimes import find as find_engine

TORCH = "torch"
ORDER = {  # by task, where no speed is measured; llama.cpp writes several answers at once
    "causal-lm": ("gguf", "onnx", "openvino"),
    "classification": ("openvino", "onnx"),
    "embedding": ("openvino", "onnx", "gguf"),
}
_AT_ONCE = 2  # what writing several answers at once is worth, of speed measured on one
_SEVERAL = ("gguf", "hf")


@dataclass(frozen=True)
class Wish:
    """What a user says of a model: the engine, what it is for, and whether exports are made."""

    engine: str | None = None
    task: str | None = None
    make: bool = True


@dataclass(frozen=True)
class Choice:
    """The export to run and its engine, or none: the model then runs as it is. And why."""

    why: str
    folder: Path | None = None
    engine: str | None = None


def fastest(path: str, home: Path, wish: Wish, say: Say = lambda _: None) -> Choice | None:
    """The export to serve in the place of a model; None where there is nothing to choose.

    `path` is a model's folder, a run's `model`, or package:NAME. Of exports under `home` and the
    installed engines that run them, the two that were measured fastest on this machine (of
    decoders, what writes several answers at once counts twice), or the first by ORDER where not
    all exports are timed. Where there is none it is made, in `home`, by the first target of ORDER
    that takes the artifact. Raises UserError where the user names an engine that does not exist.
    """
    engine = None if wish.engine is None else find_engine(wish.engine).name
    there = Path(path).expanduser()
    if engine == TORCH or not (path.startswith(PACKAGE) or there.is_dir()) or _native(there):
        return None
    run = there.parent if there.name == "model" and (there.parent / REPORT).is_file() else None
    home, ref = home.expanduser().absolute(), path if run is None else str(run)
    artifact = find_artifact(ref, home)
    if artifact.files.gguf is not None:
        return None
    own = task_of(config_of(artifact.files), artifact.files)
    task = wish.task or own
    if task not in ORDER or (task == "embedding" and own != task):
        return Choice(f"engines' exports make embeddings of no head's model, and it is for {own}")
    search = _Search(artifact, ref, home, task, engine)
    found = search.found()
    if found is not None or not wish.make:
        return found or Choice("there is no export of it, and none may be made (--no-export)")
    return search.made(say)


def _native(path: Path) -> bool:
    """Whether the folder is an engine's already."""
    engine = engine_of(path) if path.is_dir() else None
    return engine is not None and engine.name != TORCH


@dataclass(frozen=True)
class _Search:
    """The exports of one artifact that the engine named runs, or any that is installed."""

    artifact: Artifact
    ref: str
    home: Path
    task: str
    engine: str | None

    def found(self) -> Choice | None:
        """The fastest that is there; PyTorch's own only where it was measured to be that."""
        folders = sorted(self.home.glob("exports/*/*"))
        usable = [one for folder in folders for one in self._usable(folder)]
        order = ORDER[self.task]
        ours = [one for one in usable if one.target in order]
        if not ours:
            return None
        timed = list(filter(_rate_here, usable))
        if {one.folder for one in ours} <= {one.folder for one in timed}:
            best = max(timed, key=self._worth)
            why = f"measured fastest here, {_rate_here(best):.3g} a second"
        else:
            best = min(ours, key=lambda one: order.index(one.target))
            why = f"not all are timed here, and {best.target} comes first"
        return Choice(why, best.folder, best.engine)

    def _worth(self, one: Exported) -> float:
        several = self.task == "causal-lm" and one.target in _SEVERAL
        return _rate_here(one) * (_AT_ONCE if several else 1)

    def _usable(self, folder: Path) -> list[Exported]:
        """An export of the artifact in each engine that runs it here, the usual one first."""
        if folder.name not in TARGETS.names() or not (folder / RECORD).is_file():
            return []
        try:
            record = read_record(folder)
        except AttarError:
            return []
        ours, theirs = self.artifact.source, record["source"]
        same = theirs["path"] == ours["path"] and record.get("stamp") == self.artifact.stamp
        if self.artifact.key is not None:
            same = theirs["key"] == ours["key"]
        if not same or record["rounded"]:
            return []
        each = in_engines(folder, record)
        if self.engine is not None:
            each = [Exported(folder, record, self.engine)]
        return [one for one in each if _runs(one)]

    def made(self, say: Say) -> Choice:
        """One that is made now, by one process at a time; or why there is none."""
        targets = [name for name in ORDER[self.task] if self._installed(name)]
        if not targets:
            return Choice(f"no engine for an export of it is installed: {_command(self.task)}")
        if not os.access(self.home, os.W_OK):  # nor made where nobody asked for it
            return Choice(f"there is no {self.home} that may be written to. --home names another")
        reasons: list[str] = []
        try:
            with _alone(default_folder(self.home, self.artifact.name, "lock"), say):
                found = self.found()  # another process may have made it meanwhile
                while found is None and targets:
                    target = targets.pop(0)
                    say(f"no export of {self.artifact.name} is there; exporting to {target}")
                    reasons += [f"{target}: {text}" for text in self._tried(target, say)]
                    found = self.found()
        except AttarError as error:
            return Choice(str(error))
        return found or Choice("; ".join(reasons) or "none of what was exported runs there")

    def _tried(self, target: str, say: Say) -> list[str]:
        """Why an export was not made, if so."""
        try:
            export(self.ref, target, self._folder(target), self.home, Wanted(speed=False), say)
        except AttarError as error:
            return [str(error)]
        except Exception as error:  # whatever a writer or an engine raises: PyTorch runs it still
            return [f"{type(error).__name__}: {error}"]
        finally:
            gc.collect()
            trim()
        return []

    def _folder(self, target: str) -> Path:
        """The usual folder; another where an export of another model of that name lies there."""
        usual = default_folder(self.home, self.artifact.name, target)
        path = str(self.artifact.source["path"])
        try:
            taken = read_record(usual)["source"]["path"] != path
        except AttarError:
            taken = False
        mark = hashlib.sha256(path.encode()).hexdigest()[:8]
        other = default_folder(self.home, f"{self.artifact.name}-{mark}", target)
        return other if taken else usual

    def _installed(self, target: str) -> bool:
        """Whether a target can be written and run here, and by the engine that the user names."""
        chosen = find(target)
        try:
            chosen.require()
        except MissingPackage:
            return False
        wanted = self.engine or chosen.engine
        return wanted in (chosen.engine, *chosen.others) and find_engine(wanted).installed()


def _runs(one: Exported) -> bool:
    try:
        engine = find_engine(one.engine)
    except AttarError:  # of an Attar that knows more engines
        return False
    return engine.installed() and engine.holds(one.folder)


def _rate_here(one: Exported) -> float:
    """Tokens or texts a second, where they were measured on a machine like this one; else 0."""
    told = one.record["environment"]
    here = told.get("processor") == processor() and told.get("cores") == cores()
    return (rate(one) or 0.0) if here else 0.0


def _command(task: str) -> str:
    """What installs the first engine of the order."""
    target = find(ORDER[task][0])
    extras = dict.fromkeys((target.extra, find_engine(target.engine).extra))
    return f"pip install 'attar[{','.join(str(extra) for extra in extras)}]'"


@contextmanager
def _alone(lock: Path, say: Say) -> Generator[None]:
    """Let one process at a time in; the system lets go of the lock of one that dies."""
    with readable(f"the lock {lock} cannot be written", lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process exports it; waiting for that")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
