"""The export that a server runs: the fastest that is there, or one that is made on first use.

Never one that was rounded a second time: what is served is what the artifact holds.
"""

from __future__ import annotations

import gc
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from attar.errors import AttarError, MissingPackage, UserError
from attar.export._alone import alone
from attar.export.artifact import REPORT, Artifact, find_artifact
from attar.export.everything import rate
from attar.export.export import Say, Wanted, check, default_folder, export, usual_folder
from attar.export.record import RECORD, Exported, in_engines, made_of, read_record
from attar.export.target import TARGETS, Target, find
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


_NONE_MAY_BE = Choice("there is no export of it, and none may be made (--no-export)")


def fastest(path: str, home: Path, wish: Wish, say: Say = lambda _: None) -> Choice | None:
    """The export to serve in the place of a model; None where there is nothing to choose.

    `path` is a model's folder, a run's `model`, or package:NAME. Of exports under `home` and the
    installed engines that run them, the two that were measured fastest on this machine (of
    decoders, what writes several answers at once counts twice), or the first by ORDER where not
    all exports are timed. Where there is none it is made, in `home`, by the first target of ORDER
    that takes the artifact. Raises UserError where the user names an engine that does not exist.
    """
    search = _search(path, home, wish)
    if not isinstance(search, _Search):
        return search
    found = search.found()
    if found is not None or not wish.make:
        return found or _NONE_MAY_BE
    return search.made(say)


def chooses(path: str, home: Path, wish: Wish) -> bool:
    """Whether `fastest` has an export to find, or to make, for the engine that the user names.

    Raises UserError where that engine runs none, as far as that is known before any weight is
    loaded.
    """
    search = _search(path, home, wish)
    refused = search if isinstance(search, Choice) else None
    if isinstance(search, _Search) and search.found() is None:
        refused = search.refused() if wish.make else _NONE_MAY_BE
    if refused is not None:
        raise not_run(path, wish, refused.why)
    return search is not None


def not_run(path: str, wish: Wish, why: str) -> UserError:
    """The error of a model that the engine which the user names does not run."""
    return UserError(f"{wish.engine} does not run {path}: {why}")


def _search(path: str, home: Path, wish: Wish) -> _Search | Choice | None:
    """Where exports are looked for; or why there can be none, or None where none is wanted."""
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
    return _Search(artifact, ref, home, task, engine)


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
            return Choice(why, best.folder, best.engine)
        best = min(ours, key=lambda one: order.index(one.target))
        command = shlex.join(("attar", "export", self.ref, "--all", "--home", str(self.home)))
        why = f"not all are timed here, and {best.target} comes first. `{command}` times them"
        return Choice(why, best.folder, best.engine)

    def _worth(self, one: Exported) -> float:
        several = self.task == "causal-lm" and find_engine(one.engine).several
        return _rate_here(one) * (_AT_ONCE if several else 1)

    def _usable(self, folder: Path) -> list[Exported]:
        """An export of the artifact in each engine that runs it here, the usual one first."""
        if folder.name not in TARGETS.names() or not (folder / RECORD).is_file():
            return []
        try:
            record = read_record(folder)
        except AttarError:
            return []
        if not made_of(record, self.artifact) or record["rounded"]:
            return []
        each = in_engines(folder, record)
        if self.engine is not None:
            each = [Exported(folder, record, self.engine)]
        return [one for one in each if _runs(one)]

    def refused(self) -> Choice | None:
        """Why none would be made, as far as that is known before any weight is loaded."""
        targets = self._targets()
        if isinstance(targets, Choice):
            return targets
        reasons: list[str] = []
        for target in targets:
            try:
                check(self.artifact, find(target))
            except AttarError as error:
                reasons.append(f"{target}: {error}")
            else:
                return None
        return Choice("; ".join(reasons))

    def _targets(self) -> list[str] | Choice:
        """What may be exported to here, likely the fastest first; or why there is nothing."""
        fit = [target for target in map(find, ORDER[self.task]) if self._runs_there(target)]
        if not fit:
            named = dict.fromkeys(find(target).engine for target in ORDER[self.task])
            return Choice(f"it runs no export for {self.task}. There are {', '.join(named)}, torch")
        targets = [target.name for target in fit if self._installed(target)]
        if not targets:
            command = _command(fit[0], self.engine or fit[0].engine)
            return Choice(f"no engine for an export of it is installed: {command}")
        if not os.access(self.home, os.W_OK):  # nor made where nobody asked for it
            return Choice(f"there is no {self.home} that may be written to. --home names another")
        return targets

    def made(self, say: Say) -> Choice:
        """One that is made now, by one process at a time; or why there is none."""
        targets = self._targets()
        if isinstance(targets, Choice):
            return targets
        reasons: list[str] = []
        try:
            lock = default_folder(self.home, self.artifact.name, "lock")
            with alone(lock, say):
                found = self.found()  # another process may have made it meanwhile
                while found is None and targets:
                    choice = f", likely the fastest of {', '.join(targets)}" if targets[1:] else ""
                    target = targets.pop(0)
                    say(
                        f"no export of {self.artifact.name} is there; exporting to {target}{choice}"
                    )
                    reasons += [f"{target}: {text}" for text in self._tried(target, say)]
                    found = self.found()
        except AttarError as error:
            return Choice(str(error))
        return found or Choice("; ".join(reasons) or "none of what was exported runs there")

    def _tried(self, target: str, say: Say) -> list[str]:
        """Why an export was not made, if so."""
        try:
            folder = usual_folder(self.home, self.artifact, target)
            export(self.ref, target, folder, self.home, Wanted(speed=False), say)
        except AttarError as error:
            return [str(error)]
        except Exception as error:  # whatever a writer or an engine raises: PyTorch runs it still
            return [f"{type(error).__name__}: {error}"]
        finally:
            gc.collect()
            trim()
        return []

    def _runs_there(self, target: Target) -> bool:
        """Whether a model for this task can be run there, by the engine that the user names."""
        wanted = self.engine or target.engine
        named = wanted in (target.engine, *target.others)
        return named and self.task in find_engine(wanted).tasks

    def _installed(self, target: Target) -> bool:
        """Whether it can be written and run here."""
        try:
            target.require()
        except MissingPackage:
            return False
        return find_engine(self.engine or target.engine).installed()


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


def _command(target: Target, engine: str) -> str:
    """What installs both."""
    extras = dict.fromkeys((target.extra, find_engine(engine).extra))
    return f"pip install 'attar[{','.join(str(extra) for extra in extras)}]'"
