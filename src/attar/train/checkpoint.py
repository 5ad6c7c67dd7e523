"""Checkpoints of a training: what is needed to go on bit-equal, in safetensors and JSON only."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from attar.core.disk import sync
from attar.core.keys import hash_file
from attar.errors import StoreError

Tensors = dict[str, torch.Tensor]
STATE = "state.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class State:
    """Where a training is, its weights and moments apart; plain numbers only.

    `waited` counts evaluations since the best one. `mean` and `share` are the running mean of
    the loss and the share of it that is filled, `course` how its parts go. `start` is the
    evaluation before the first step.
    """

    step: int = 0
    steps: int = 0
    world: int = 1
    start: float | None = None
    best: float | None = None
    best_step: int = -1
    waited: int = 0
    mean: float = 0.0
    share: float = 0.0
    course: dict[str, list[float]] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def point(self, curve: str, value: float) -> None:
        """Add a point at this step."""
        self.curves.setdefault(curve, []).append((float(self.step), value))


class Checkpoints:
    """The folder of a training's checkpoint and of its best state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, state: State, parts: Mapping[str, Tensors]) -> None:
        """Publish a checkpoint, then forget the one before."""
        self._publish(f"step-{state.step:08d}", asdict(state), parts)
        self._forget("step-", but=f"step-{state.step:08d}")

    def write_best(self, step: int, weights: Tensors) -> None:
        """Publish the best state so far, then forget the one before."""
        self._publish(f"best-{step:08d}", {"step": step}, {"weights": weights})
        self._forget("best-", but=f"best-{step:08d}")

    def latest(self) -> tuple[State, dict[str, Tensors]] | None:
        """The newest checkpoint that is whole, together with the best state that it speaks of."""
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            found = _read(folder)
            if found is not None:
                values, parts = found
                state = _state(values)
                if state is not None and (state.best_step < 0 or self._has_best(state.best_step)):
                    return state, parts
        return None

    def best(self, step: int) -> Tensors:
        """The weights of the best state."""
        found = _read(self.folder / f"best-{step:08d}")
        if found is None:
            raise StoreError(
                f"the best state, of step {step}, in {self.folder} cannot be read any more. "
                "Delete the folder and run again: the step starts anew"
            )
        return found[1]["weights"]

    def last_step(self) -> int | None:
        """The step of the newest checkpoint, whether whole or not."""
        return max(
            (int(f.name.partition("-")[2]) for f in self.folder.glob("step-*")), default=None
        )

    def _has_best(self, step: int) -> bool:
        """A later one will do too: training comes past it again, and finds it again."""
        return any(
            _step(folder) > step or (_step(folder) == step and _read(folder) is not None)
            for folder in self.folder.glob("best-*")
        )

    def _publish(self, name: str, values: dict[str, Any], parts: Mapping[str, Tensors]) -> None:
        draft = self.folder / f"draft-{name}"
        with _writing(draft, self):
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            hashes: dict[str, str] = {}
            for part, tensors in parts.items():
                path = draft / f"{part}.safetensors"
                save_file({key: t.detach().contiguous() for key, t in tensors.items()}, path)
                hashes[path.name] = hash_file(path)
                sync(path)
            (draft / STATE).write_text(json.dumps({**values, "files": hashes}), "utf-8")
            sync(draft / STATE)
            shutil.rmtree(self.folder / name, ignore_errors=True)
            draft.replace(self.folder / name)
            sync(self.folder)

    def _forget(self, prefix: str, but: str) -> None:
        for folder in self.folder.glob(f"{prefix}*"):
            if folder.name != but:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _writing(draft: Path, checkpoints: Checkpoints) -> Iterator[None]:
    """Leave no draft behind, and say what to free when the disk is full."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        number = getattr(error, "errno", None)
        full = number in _FULL or "No space left" in str(error) or "os error 28" in str(error)
        why = "the disk is full" if full else str(error)
        last = checkpoints.last_step()
        kept = ", and run again"
        if last is not None:
            kept = f". The checkpoint of step {last} is kept, and the same command goes on there"
        raise StoreError(
            f"a checkpoint cannot be written to {checkpoints.folder}: {why}. Free some space "
            f"there, about three times the size of the model in float32{kept}"
        ) from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensors]] | None:
    """What a folder holds, or None where anything in it is missing or damaged."""
    try:
        values = json.loads((folder / STATE).read_text("utf-8"))
        parts: dict[str, Tensors] = {}
        for name, digest in values.pop("files").items():
            if hash_file(folder / name) != digest:
                return None
            parts[name.removesuffix(".safetensors")] = load_file(folder / name)
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError):
        return None
    return values, parts


def _state(values: dict[str, Any]) -> State | None:
    try:
        state = State(**values)
    except TypeError:  # written by another version
        return None
    state.curves = {
        name: [(float(x), float(y)) for x, y in points] for name, points in state.curves.items()
    }
    return state


def _step(folder: Path) -> int:
    return int(folder.name.partition("-")[2])
