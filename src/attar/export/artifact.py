"""What a user's REF names: a run, an artifact's key, or the path of a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from attar.core.recipe import ModelSource
from attar.core.registry import nearest
from attar.core.report import Report, StageReport
from attar.engine.store import Store
from attar.errors import UserError
from attar.models.source import PACKAGE, Files, resolve

_KEY = re.compile(r"[0-9a-f]{2,24}")
REPORT = "report.json"


@dataclass(frozen=True)
class Artifact:
    """A model to be exported: its files, what to call it, and the report of its run, if any."""

    name: str
    files: Files
    key: str | None = None
    report: Report | None = None

    @property
    def source(self) -> dict[str, str | None]:
        """What an export's record says that it was made of."""
        place = self.files.gguf or self.files.folder
        return {"name": self.name, "key": self.key, "path": str(place.absolute())}

    @property
    def stamp(self) -> list[list[str | int]]:
        """Names, sizes and times of its files: another one once they were written anew."""
        found = [(path.name, path.stat()) for path in self.files.parts]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]

    @property
    def stages(self) -> list[StageReport]:
        """The stages that led to it, the original first; none where no report tells."""
        if self.report is None:
            return []
        by_id = {stage.id: stage for stage in self.report.stages}
        stage = next((s for s in self.report.stages if s.key == self.key), None)
        found: list[StageReport] = []
        while stage is not None:
            found.append(stage)
            stage = by_id.get(stage.parent or "")
        return found[::-1]


def find_artifact(ref: str, home: Path) -> Artifact:
    """The artifact of this name. Raises UserError, with the nearest name, where there is none."""
    store = Store(home)
    runs = run_folders(store.home)
    if ref in runs:
        return _of_run(ref, runs[ref])
    path = Path(ref).expanduser()
    if (path / REPORT).is_file() and (path / "model").is_dir():
        return _of_run(path.absolute().name, path)
    if path.exists() or ref.startswith(PACKAGE):
        return _of_path(ref, store, runs)
    keys = store.keys()
    if _KEY.fullmatch(ref) and any(key.startswith(ref) for key in keys):
        return _of_path(str(store.path(store.find(ref))), store, runs)
    hint = nearest(ref, [*runs, *keys]) or "."
    raise UserError(
        f"nothing is called {ref!r}{hint} Looked for a run or an artifact's key in {store.home} "
        f"({len(runs)} runs, {len(keys)} artifacts), and a model at {path.absolute()}"
    )


def run_folders(home: Path) -> dict[str, Path]:
    """The runs that led to a model, by name."""
    found = sorted(home.glob(f"runs/*/{REPORT}"))
    return {path.parent.name: path.parent for path in found if (path.parent / "model").exists()}


def _of_run(name: str, folder: Path) -> Artifact:
    model = (folder / "model").resolve()
    report = _report(folder / REPORT)
    last = (report.pressed or next(iter(report.stages), None)) if report else None
    key = last.key if last else None  # a stage after it may be data
    return Artifact(name, resolve(ModelSource(path=str(model))), key, report)


def _of_path(ref: str, store: Store, runs: dict[str, Path]) -> Artifact:
    files = resolve(ModelSource(path=ref))
    folder = files.folder.resolve()
    if folder.parent != (store.home / "store").resolve():
        name = files.gguf.stem if files.gguf else folder.name
        return Artifact(ref.removeprefix(PACKAGE) if ref.startswith(PACKAGE) else name, files)
    for path in runs.values():
        report = _report(path / REPORT)
        if report and any(stage.key == folder.name for stage in report.stages):
            return Artifact(folder.name[:12], files, folder.name, report)
    return Artifact(folder.name[:12], files, folder.name)


def _report(path: Path) -> Report | None:
    """A run's report; one that is damaged tells nothing."""
    try:
        return Report.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
