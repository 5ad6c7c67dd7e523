"""A teacher that is asked about each row once; what it said is kept, and read from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from attar.core.keys import seed_of
from attar.core.step import Task
from attar.data.batches import Batch
from attar.data.endpoint import Endpoint, Likely
from attar.data.teacher_cache import TeacherCache, Tensors, digest
from attar.errors import UserError
from attar.models.model import Model, inference
from attar.ops.chunked import Side, Told
from attar.ops.divergence import IGNORED
from attar.ops.sketch import Sample, Top
from attar.train.losses import states

_ROWS = 256  # positions whose logits over the vocabulary exist at a time


class Asked(Protocol):
    """Whoever answers for rows of tokens: a model at hand, or one behind an address."""

    def __call__(self, rows: Sequence[Tensor]) -> list[Tensors]:
        """What is to be kept of each row, [tokens - 1, ...], or of a classifier [1, ...]."""
        ...


class Sketch(Protocol):
    """What of a language model's distributions is kept, and how it is read."""

    def keep(self, logits: Tensor, starts: Tensor) -> Tensors:
        """Of logits [positions, classes], with a number in [0, 1) for each position."""
        ...

    def read(self, kept: Tensors, classes: int) -> Told:
        """What was kept of some positions."""
        ...


@dataclass(frozen=True)
class Likeliest:
    """So many likeliest classes, and the rest as one."""

    entries: int

    def keep(self, logits: Tensor, starts: Tensor) -> Tensors:
        """Nothing of it is drawn."""
        return Top.of(logits, self.entries).packed()

    def read(self, kept: Tensors, classes: int) -> Told:
        """As it was packed."""
        return Top.unpacked(kept, classes)


@dataclass(frozen=True)
class Drawn:
    """So many classes, drawn where they are not certain to be among them."""

    entries: int

    def keep(self, logits: Tensor, starts: Tensor) -> Tensors:
        """A sample from these starts."""
        return Sample.of(logits, self.entries, starts).packed()

    def read(self, kept: Tensors, classes: int) -> Told:
        """As it was packed."""
        return Sample.unpacked(kept, classes)


class Local:
    """A model at hand, loaded when it is first asked.

    Each row is run by itself: what is said of it must not hang on the rows that a batch brings
    it together with, or a training that was killed would not go on bit-equal.
    """

    def __init__(self, opened: Callable[[], Model], sketch: Sketch, precision: str) -> None:
        self._open, self._sketch, self._precision = opened, sketch, precision
        self.model: Model | None = None

    def __call__(self, rows: Sequence[Tensor]) -> list[Tensors]:
        """What it says of each row."""
        if self.model is None:
            with torch.random.fork_rng():  # loading may draw, and what is drawn next must not move
                self.model = self._open()
        model = self.model
        with inference(model.device, self._precision):
            return [self._one(model, row.to(model.device)) for row in rows]

    def _one(self, model: Model, ids: Tensor) -> Tensors:
        row = ids.unsqueeze(0)
        batch = Batch(row, torch.ones_like(row), row)
        hidden = states(model, batch)
        if not hidden.isfinite().all():  # codes hold no NaN: it would pass for an answer
            raise UserError(
                "the teacher's answers are not finite numbers, so none are kept. Take another "
                "teacher, or precision: float32"
            )
        if model.task == "classification":
            return {"logits": hidden.float().cpu()}
        generator = torch.Generator().manual_seed(seed_of("sketch", digest(ids).hex()))
        starts = torch.rand(len(hidden), generator=generator, dtype=torch.float64)
        parts = [
            self._sketch.keep(model.head(some), begin.to(model.device))
            for some, begin in zip(hidden.split(_ROWS), starts.split(_ROWS), strict=True)
        ]
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


class Served:
    """A model behind an address, of which the likeliest tokens are all that is known."""

    def __init__(self, opened: Callable[[], Endpoint], entries: int, classes: int) -> None:
        self._open, self._entries, self._classes = opened, entries, classes
        self.endpoint: Endpoint | None = None

    def __call__(self, rows: Sequence[Tensor]) -> list[Tensors]:
        """What it says of each row."""
        if self.endpoint is None:
            self.endpoint = self._open()
        told = self.endpoint.likeliest([row.tolist() for row in rows], self._entries)
        return [self._packed(one) for one in told]

    def _packed(self, told: list[Likely]) -> Tensors:
        ids = torch.tensor([one.ids for one in told])
        if int(ids.max()) >= self._classes:
            raise UserError(
                f"the served model told of token {int(ids.max())}, and the student has "
                f"{self._classes}. Serve a model with the student's own tokenizer"
            )
        logs = torch.tensor([one.logs for one in told])
        if logs.isnan().any():
            raise UserError("the served model told of log-probabilities that are no numbers (NaN)")
        return Top.told(ids, logs, self._classes).packed()


class Cached:
    """What a teacher says of a batch, read from a cache; asked, and kept, where it is not there.

    The loss always sees what was packed, just as it will be read later.
    """

    def __init__(
        self, asked: Asked, cache: TeacherCache, sketch: Sketch, task: Task, classes: int
    ) -> None:
        self._asked, self._cache, self._sketch = asked, cache, sketch
        self._task, self._classes = task, classes
        self.read = self.missed = 0

    def __call__(self, batch: Batch) -> Told:
        """What is kept of the judged positions of a batch."""
        masks = batch.attention_mask.bool()
        rows = [ids[mask].cpu() for ids, mask in zip(batch.input_ids, masks, strict=True)]
        found = self._rows(rows)
        device = batch.input_ids.device
        if self._task == "classification":
            return Side(_same, torch.cat([row["logits"] for row in found]).to(device))
        judged = [
            (labels[mask][1:] != IGNORED).cpu()
            for labels, mask in zip(batch.labels, masks, strict=True)
        ]
        kept = {
            name: torch.cat([row[name][one] for row, one in zip(found, judged, strict=True)])
            for name in found[0]
        }
        told = self._sketch.read(kept, self._classes)
        return told if isinstance(told, Side) else told.to(device)

    def _rows(self, rows: list[Tensor]) -> list[Tensors]:
        names = [digest(row) for row in rows]
        found = [self._cache.get(name) for name in names]
        lacking = [number for number, row in enumerate(found) if row is None]
        if lacking:
            for number, row in zip(
                lacking, self._asked([rows[number] for number in lacking]), strict=True
            ):
                found[number] = row
                self._cache.put(names[number], row)
        self.read += len(rows) - len(lacking)
        self.missed += len(lacking)
        return [row for row in found if row is not None]


def _same(logits: Tensor) -> Tensor:
    return logits
