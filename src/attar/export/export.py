"""Exporting an artifact: refused early, written as a draft, verified, and then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

from attar.engine.store import flush, readable
from attar.errors import UserError
from attar.export._alone import alone
from attar.export.artifact import Artifact, find_artifact
from attar.export.prepare import merge_factors, refuse, refuse_codes, round_again
from attar.export.record import FORMAT, RECORD, Exported, read_record, write_record
from attar.export.target import TARGETS, Target, find, quantized
from attar.export.verify import Reference, compare_codes, compare_outputs, far, missing
from attar.measure.engines import time_engine
from attar.measure.machine import environment
from attar.measure.probe import random_ids
from attar.measure.size import total_size, weights_size
from attar.models import Model, load
from attar.models.adapters import adapted_in
from attar.models.load import config_of, load_tokenizer, skeleton, task_of
from attar.runtimes import find as find_engine

PROMPT, TEXT, TEXTS = 64, 128, 8
_FORMER_PROMPT = [list(range(10, 42))]  # for an export that was not timed when it was made
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What the user asked for beside the target.

    `allow_rounding`: grids that the target does not hold are rounded again, and the record says
    so. `dense`: two thin linears become one. `speed`: time the engine. `verify`: run the engine
    on held-out text; codes are compared in any case.
    """

    allow_rounding: bool = False
    dense: bool = False
    verify: bool = True
    speed: bool = True
    threads: int | None = None


USUAL = Wanted()


def export(
    ref: str | Path,
    target: str,
    out: str | Path | None = None,
    home: str | Path = ".attar",
    wanted: Wanted = USUAL,
    say: Say = lambda _: None,
) -> Exported:
    """Write an artifact into the container of an engine, verify it there, and time it.

    `ref` is a run's name, the beginning of an artifact's key, or a model's path; `out` is the
    folder to write, by default exports/NAME/TARGET under `home`. Raises ExportError where the
    target cannot hold the artifact without loss, before any weight is loaded where that can be
    known; nothing is published unless the engine reads back the very codes.
    """
    chosen, artifact = find(target), find_artifact(str(ref), Path(home))
    folder = Path(out) if out else default_folder(Path(home), artifact.name, target)
    return export_beside(Reference(artifact), chosen, folder, wanted, say)


def export_beside(
    reference: Reference, target: Target, folder: Path, wanted: Wanted, say: Say
) -> Exported:
    """Export an artifact that may be exported to other targets too: they share what it answers."""
    check(reference.artifact, target, wanted)
    check_place(folder)
    folder = folder.expanduser().absolute()
    return _write(reference, load(reference.artifact.files), target, folder, wanted, say)


def check(artifact: Artifact, target: Target, wanted: Wanted = USUAL) -> None:
    """Raise AttarError where the target does not take it, so far as no weight need be loaded."""
    target.require()
    skeleton = _skeleton(artifact, wanted)
    refuse(skeleton, target, wanted.allow_rounding, adapted_in(artifact.files.folder))


def write(
    artifact: Artifact, model: Model, target: Target, folder: Path, wanted: Wanted, say: Say
) -> Exported:
    """Write a model that is loaded already, verify it and time it."""
    return _write(Reference(artifact), model, target, folder, wanted, say)


def _write(
    reference: Reference, model: Model, target: Target, folder: Path, wanted: Wanted, say: Say
) -> Exported:
    artifact = reference.artifact
    merged = merge_factors(model.module) if wanted.dense else []
    rounded = round_again(model, refuse_codes(model, target, wanted.allow_rounding), target)
    engine = find_engine(target.engine)
    with draft_of(folder, say) as draft:
        say(f"writing {target.name}")
        target.write(model, draft)
        if not (draft / "tokenizer_config.json").exists():
            model.tokenizer.save_pretrained(draft)
        say(f"reading it back with {target.engine}")
        floats = [item.name for item in quantized(model) if target.floats(item)]
        record = {
            **_about(artifact, model, target),
            "rounded": rounded,
            "merged": merged,
            "as_floats": floats,
            "bytes": weights_size(draft) or total_size(draft),
            "verified": {"codes": compare_codes(model, engine, draft, floats)},
            "engines": {},
        }
        absent = missing(engine)
        if absent is not None:
            record["not_run"] = str(absent)
        wanted = replace(wanted, speed=wanted.speed and target.timed)
        if wanted.speed:
            record["prompt"] = _prompt(model)
        engines = target.engines(draft)
        if rounded:  # it answers otherwise now
            reference = Reference(artifact)
        for runs in engines:
            try:
                _run(model, reference, Exported(draft, record, runs.name), wanted, say)
            except Exception as error:  # whatever an engine raises
                if runs.name == target.engine:
                    raise
                _warn(record, f"{runs.name} failed, {target.engine} runs it: {error}", say)
        write_record(artifact, draft, record)
    return Exported(folder, record, target.engine)


def _run(model: Model, reference: Reference, one: Exported, wanted: Wanted, say: Say) -> None:
    """Put into the record what is found in one engine: its version, its answers, its speed."""
    engine = find_engine(one.engine)
    found: dict[str, Any] = {"version": engine.version()}
    if wanted.verify:
        say(f"comparing its answers in {engine.name} with PyTorch's")
        outputs = compare_outputs(model, engine, one.folder, reference)
        found["outputs"] = {**outputs, "text": reference.rows(model)[1]}
        warning = far(outputs, engine.name)
        if warning:
            _warn(one.record, warning, say)
    one.record["engines"][engine.name] = found
    if wanted.speed:
        say(f"timing it in {engine.name}, in a fresh process")
        found["speed"] = timed(one, wanted.threads)


def _warn(record: dict[str, Any], warning: str, say: Say) -> None:
    record.setdefault("warnings", []).append(warning)
    say(f"warning: {warning}")


def _prompt(model: Model) -> list[list[int]]:
    """Rows of random tokens: one for a decoder to go on from, several for an encoder to read."""
    decodes = model.task == "causal-lm"
    length = PROMPT if decodes else TEXT
    limit = getattr(model.config, "max_position_embeddings", None) or length
    return random_ids(model, 1 if decodes else TEXTS, max(1, min(length, limit // 2))).tolist()


def timed(one: Exported, threads: int | None) -> dict[str, Any]:
    """The figures of an export in one engine, with the prompt that its record holds."""
    rows = one.record.get("prompt", _FORMER_PROMPT)
    found = time_engine(one.folder, one.engine, rows, threads, tokens=len(rows[0]))
    return {name: figure.model_dump() for name, figure in found.items()}


def _about(artifact: Artifact, model: Model, target: Target) -> dict[str, Any]:
    from attar import __version__

    grids = {item.name: item.told for item in quantized(model)}
    return {
        "format": FORMAT,
        "attar": __version__,
        "source": artifact.source,
        "stamp": artifact.stamp,
        "target": target.name,
        "reads_with": target.engine,
        "task": model.task,
        "grids": grids,
        "floats": str(model.module.dtype).removeprefix("torch."),
        "environment": environment(),
    }


def _skeleton(artifact: Artifact, wanted: Wanted) -> Model:
    """Names, shapes and settings, with the tokenizer and no weights."""
    config = config_of(artifact.files)
    model = skeleton(config, task_of(config, artifact.files))
    model.tokenizer = load_tokenizer(artifact.files)
    if wanted.dense:
        merge_factors(model.module)
    return model


def default_folder(home: Path, name: str, target: str) -> Path:
    """Where an export goes when the user names no folder."""
    return home.expanduser().absolute() / "exports" / name / target


def taken(folder: Path) -> bool:
    """Whether something is there already, but for an empty folder."""
    return folder.is_file() or (folder.is_dir() and any(folder.iterdir()))


def check_place(folder: Path) -> None:
    """Refuse a folder that holds something else; an earlier export is replaced."""
    folder = folder.expanduser()
    if taken(folder) and not (folder / RECORD).is_file():
        raise UserError(
            f"{folder.absolute()} is there and is no export of Attar's. Name another folder with "
            "--out, or move it away"
        )


@contextmanager
def draft_of(folder: Path, say: Say = lambda _: None) -> Generator[Path]:
    """A folder to fill beside the one wanted; it takes its place once it is whole and on disk.

    One at a time fills it: another that wants the same place waits, and then replaces it.
    """
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.draft")
    old = folder.with_name(f"{folder.name}.{os.getpid()}.old")
    lock = folder.with_name(f"{folder.name}.lock")
    what = f"the export could not be written to {folder}"
    with readable(what, folder.parent), alone(lock, say):
        try:
            _sweep(folder)
            draft.mkdir()
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


def _sweep(folder: Path) -> None:
    """Remove what killed processes left beside an export, and put back one they were replacing."""
    for left in folder.parent.glob(f"{escape(folder.name)}.*.*"):
        number = left.name.removeprefix(f"{folder.name}.").partition(".")[0]
        if not number.isdigit() or left.suffix not in (".draft", ".old"):
            continue
        if left.suffix == ".old" and not folder.exists():
            left.rename(folder)
        else:
            shutil.rmtree(left, ignore_errors=True)


def exports_of(artifact: Artifact, home: Path) -> dict[Path, dict[str, Any]]:
    """The records of an artifact's exports under `home`, by their folders.

    None of another model that has or had the same name, and no draft that a kill left.
    """
    folders = (default_folder(home, artifact.name, target) for target in TARGETS.names())
    found = {folder: read_record(folder) for folder in folders if (folder / RECORD).is_file()}
    return {f: record for f, record in found.items() if record["source"] == artifact.source}
