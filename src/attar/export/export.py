"""Exporting an artifact: refused early, written as a draft, verified, and then renamed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attar.errors import AttarError, UserError
from attar.export._draft import draft_of, without_drafts
from attar.export._reference import Reference
from attar.export.artifact import Artifact, find_artifact
from attar.export.prepare import merge_factors, refuse, refuse_codes, round_again
from attar.export.record import FORMAT, RECORD, Exported, made_of, read_record, write_record
from attar.export.target import TARGETS, Target, find, quantized
from attar.export.verify import compare_codes, compare_outputs, far, missing
from attar.measure.engines import AGAIN, time_engine
from attar.measure.machine import environment
from attar.measure.probe import random_ids
from attar.measure.size import engine_size
from attar.models import Model, load
from attar.models.adapters import adapted_in
from attar.models.load import config_of, load_tokenizer, skeleton, task_of
from attar.runtimes import find as find_engine

PROMPT, TEXT, TEXTS = 64, 128, 8
_FORMER_PROMPT = [list(range(10, 42))]  # for an export that was not timed when it was made
NOT_TIMED = " was not timed: "  # after the engine's name, in a warning
_LATER = "`attar bench` times it later, --no-speed leaves it out"
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
    folder = Path(out) if out else usual_folder(Path(home), artifact, target)
    return export_beside(Reference(artifact), chosen, folder, wanted, say)


def export_beside(
    reference: Reference, target: Target, folder: Path, wanted: Wanted, say: Say
) -> Exported:
    """Export an artifact that may be exported to other targets too: they share what it answers."""
    check(reference.artifact, target, wanted)
    check_place(folder, reference.artifact, target)
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
        absent = target.write(model, draft)
        if not (draft / "tokenizer_config.json").exists():
            model.tokenizer.save_pretrained(draft)
        say(f"reading it back with {target.engine}")
        floats = [item.name for item in quantized(model) if target.floats(item)]
        record = {
            **_about(artifact, model, target),
            "rounded": rounded,
            "merged": merged,
            "as_floats": floats,
            "bytes": engine_size(draft),
            "verified": {"codes": compare_codes(model, engine, draft, floats)},
            "engines": {},
        }
        for warning in absent or ():
            _warn(record, warning, say)
        uninstalled = missing(engine)
        if uninstalled is not None:
            record["not_run"] = str(uninstalled)
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
        held = reference.held(model)
        say(f"comparing its answers in {engine.name} with PyTorch's on {held.told}")
        outputs = compare_outputs(model, engine, one.folder, reference)
        found["outputs"] = {**outputs, "text": held.text}
        warning = far(outputs, engine.name)
        if warning:
            _warn(one.record, warning, say)
    one.record["engines"][engine.name] = found
    if wanted.speed:
        say(f"timing it in {engine.name}, in a fresh process")
        try:
            found["speed"] = timed(one, wanted.threads, _LATER)
        except AttarError as error:  # what was written and verified is good without
            _warn(one.record, f"{engine.name}{NOT_TIMED}{error}", say)


def _warn(record: dict[str, Any], warning: str, say: Say) -> None:
    warning = without_drafts(warning)
    record.setdefault("warnings", []).append(warning)
    say(f"warning: {warning}")


def _prompt(model: Model) -> list[list[int]]:
    """Rows of random tokens: one for a decoder to go on from, several for an encoder to read."""
    decodes = model.task == "causal-lm"
    length = PROMPT if decodes else TEXT
    limit = getattr(model.config, "max_position_embeddings", None) or length
    return random_ids(model, 1 if decodes else TEXTS, max(1, min(length, limit // 2))).tolist()


def timed(one: Exported, threads: int | None, advice: str = AGAIN) -> dict[str, Any]:
    """The figures of an export in one engine, with the prompt that its record holds."""
    rows = one.record.get("prompt", _FORMER_PROMPT)
    found = time_engine(one.folder, one.engine, rows, threads, len(rows[0]), advice)
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
    """The folder of the exports of a model of this name, when the user names none."""
    return home.expanduser().absolute() / "exports" / name / target


def usual_folder(home: Path, artifact: Artifact, target: str) -> Path:
    """Where an export goes when the user names no folder.

    Another one than the default where an export of another model of the same name lies there.
    """
    folder = default_folder(home, artifact.name, target)
    former = _former(folder)
    if former is None or _replaced(former["source"], artifact.source):
        return folder
    return _marked_folder(home, artifact, target)


def _marked_folder(home: Path, artifact: Artifact, target: str) -> Path:
    mark = hashlib.sha256(str(artifact.source["path"]).encode()).hexdigest()[:8]
    return default_folder(home, f"{artifact.name}-{mark}", target)


def taken(folder: Path) -> bool:
    """Whether something is there already, but for an empty folder."""
    return folder.is_file() or (folder.is_dir() and any(folder.iterdir()))


def check_place(folder: Path, artifact: Artifact, target: Target) -> None:
    """Refuse a folder that holds something else; an earlier export of the model is replaced."""
    folder = folder.expanduser().absolute()
    model = artifact.files.folder.resolve()
    if folder.resolve() in (model, *model.parents) and taken(folder):
        raise UserError(f"{folder} is where the model lies. Name another folder with --out")
    if taken(folder) and not (folder / RECORD).is_file():
        raise UserError(
            f"{folder} is there and is no export of Attar's. Name another folder with --out, or "
            "move it away"
        )
    former = _former(folder)
    if former is None:
        return
    source = former["source"]
    if former["target"] != target.name or not _replaced(source, artifact.source):
        whose = source["path"] or source["name"]
        raise UserError(
            f"{folder} holds an export of {whose} to {former['target']}. Name another folder with "
            "--out, or move it away"
        )


def _former(folder: Path) -> dict[str, Any] | None:
    """The record of an export that lies there; one that cannot be read protects nothing."""
    try:
        return read_record(folder)
    except AttarError:
        return None


def _replaced(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether an export of one source gives way to another's: the same model, or the same run's."""
    if theirs["key"] is None or ours["key"] is None:
        return theirs["path"] == ours["path"]
    homes = [Path(str(source["path"])).parent for source in (theirs, ours)]
    return theirs["key"] == ours["key"] or (theirs["name"] == ours["name"] and homes[0] == homes[1])


def exports_of(artifact: Artifact, home: Path) -> dict[Path, dict[str, Any]]:
    """The records of an artifact's exports under `home`, by their folders.

    None of another model that has or had the same name, nor of these files before they were
    written anew, and no draft that a kill left.
    """
    places = (default_folder(home, artifact.name, target) for target in TARGETS.names())
    marked = (_marked_folder(home, artifact, target) for target in TARGETS.names())
    folders = [folder for folder in (*places, *marked) if (folder / RECORD).is_file()]
    found = {folder: read_record(folder) for folder in folders}
    return {f: record for f, record in found.items() if made_of(record, artifact)}
