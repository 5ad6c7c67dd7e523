"""Where a model lies, which engine runs it, and what it will take, before any of it loads."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from attar.core.recipe import ModelSource
from attar.errors import AttarError, UserError
from attar.runtimes import engine_of, find
from attar.runtimes._gguf import encodes, gguf_of
from attar.runtimes.runtime import Engine
from attar.serve.memory import TORCH, Footprint, footprint
from attar.serve.settings import Settings, Source

_FLOAT = 8  # how much a GGUF file grows where PyTorch reads it into float32


@dataclass(frozen=True)
class Place:
    """Where a source lies, which engine runs it, and about how many bytes its weights take.

    `floats`: weights on grids are brought into floats as they load, not in every pass.
    """

    folder: Path
    engine: str
    size: int
    files: Any = field(default=None)  # of models that PyTorch runs
    floats: bool = False
    dtype: Literal["auto", "float32"] = "auto"

    @property
    def path(self) -> Path:
        """What an engine opens: the folder, or the GGUF file in it that was named."""
        gguf: Path | None = None if self.files is None else self.files.gguf
        return gguf or self.folder


def locate(source: Source) -> Place:
    """Find a model's files and the engine that runs them; reads no weights.

    Raises UserError or ModelError for what cannot be served.
    """
    from attar.measure.size import total_size
    from attar.models.source import resolve

    path = Path(source.path).expanduser()
    if path.is_dir():
        engine = _engine(source, path)
        if engine is not None:
            return Place(path, engine.name, total_size(path))
    files = resolve(ModelSource(path=source.path))
    if files.gguf is None:
        _check_reads(files)
        return Place(files.folder, TORCH, files.size, files)
    engine = _engine(source, files.gguf)
    if engine is not None:
        return Place(files.folder, engine.name, files.size, files)
    return Place(files.folder, TORCH, _FLOAT * files.size, files)


def _engine(source: Source, path: Path) -> Engine | None:
    """The engine other than PyTorch that opens this: the one named, or the one it is for.

    Raises UserError where the one that is named does not.
    """
    engine = find(source.engine) if source.engine else _native(path)
    if engine is None or engine.name == TORCH:
        return None
    engine.require()
    if not engine.holds(path):
        raise UserError(
            f"{engine.name} does not run what is in {path}. `attar export` writes what it runs"
        )
    return engine


def _check_reads(files: Any) -> None:
    """Raise UserError where a model takes in images or sounds: what is asked here are texts."""
    from attar.models.families import FAMILIES
    from attar.models.source import read_config

    family = FAMILIES.get(read_config(files)["model_type"])
    if family is not None and family.media:
        raise UserError(
            f"the model in {files.folder} takes in images or sounds, and texts alone are served. "
            "Load it in Python, with attar.load or with transformers"
        )


def _native(folder: Path) -> Engine | None:
    """The engine that the folder's files are for, where it is installed."""
    with suppress(UserError):
        engine = engine_of(folder)
        if engine is not None and engine.installed():
            return engine
    return None


def placed(source: Source, settings: Settings) -> Place:
    """Where it lies; what PyTorch runs is brought into floats where the budget allows it.

    It does where all models fit so together, or one would go for another that fitted beside it.
    """
    place = locate(source)
    if settings.memory is None:
        return _quick(place)
    with suppress(AttarError):  # another one that is not to be found is told when it is wanted
        total, fewer = 0, False
        for each in settings.models:
            packed = locate(each)
            taken = footprint(_quick(packed), each, settings)
            total += taken.total
            fewer |= taken.batch < footprint(packed, each, settings).batch
        if total <= settings.memory and not fewer:
            return _quick(place)
    return place


def task_at(source: Source) -> str | None:
    """What a model is for: causal-lm, classification or embedding; None where nothing says."""
    from attar.models.load import config_of, task_of
    from attar.models.source import Files

    if source.task is not None:
        return source.task
    with suppress(AttarError):  # what is wrong with it is told when it is wanted
        place = locate(source)
        gguf = gguf_of(place.path)
        if gguf is not None and place.engine != TORCH:
            return "embedding" if encodes(gguf) else "causal-lm"
        files = place.files or Files(place.folder)
        task = task_of(config_of(files), files)
        return task if task in ("causal-lm", "classification") else "embedding"
    return None


def _quick(place: Place) -> Place:
    if place.engine != TORCH or place.files.gguf is not None:
        return place
    from attar.serve.pytorch import as_floats

    return as_floats(place)


def expected(source: Source, settings: Settings) -> Footprint:
    """What a model will take of the budget; reads no weights. Raises UserError or ModelError."""
    return footprint(placed(source, settings), source, settings)
