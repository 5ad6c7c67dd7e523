"""Learn several tasks at once, each from a teacher of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self, cast

from pydantic import Field, model_validator

from attar.core.context import Context
from attar.core.registry import nearest
from attar.core.step import DataRef, ModelRef, Step
from attar.core.traits import FLOAT
from attar.data.batches import Batch
from attar.data.example import Dataset, classes
from attar.data.turns import TurnBatch, Turns
from attar.errors import DataError, Problem
from attar.models.model import Model
from attar.techniques.distill._answers import Answers, Weight
from attar.techniques.distill._guided import GuidedUpdating
from attar.train.fit import fit
from attar.train.losses import Loss, Objective
from attar.train.rows import judged_on, stream_of
from attar.train.signals import toward
from attar.train.teacher import ready_by_name

_SHOWN = 20  # rows that no teacher is for


class Routed(Answers, GuidedUpdating, Step, kind="distill/routed"):
    """One student of several teachers, of which each teaches on its own rows alone.

    These are the rows of a dataset for each teacher or, with `domains`, those whose domain is the
    teacher's, wherever they are; `data: {train: {path: rows.jsonl, domain: topic}}` names the
    column that holds it. Batches are of one teacher's rows each, in a random order, so that one is
    asked at a time. The loss is weight x divergence from its teacher + (1 - weight) x the task's
    own loss, and `also` adds signals from the same teacher, each with projections of its own. The
    report has curves for each teacher.
    """

    needs = frozenset({FLOAT})
    shares = True
    promises = frozenset({"changed"})

    teachers: tuple[ModelRef, ...] = Field(
        min_length=2,
        description="whom to learn from, one for each dataset or domain: earlier stages, paths, or "
        "the original",
    )
    data: tuple[DataRef, ...] = Field(
        min_length=1,
        description="what each of the teachers teaches on, in the same order; with `domains`, any "
        "datasets",
    )
    domains: tuple[str, ...] = Field(
        (),
        description="the domain of each of the teachers, in the same order: rows go by their own; "
        "none: each teacher has a dataset",
    )
    weight: Weight = 1.0
    held_out: tuple[DataRef, ...] = Field(
        (),
        description="a dataset for each of the teachers or, with `domains`, any datasets, which "
        "tell which state is best; none: the last is kept",
    )

    @model_validator(mode="after")
    def _one_for_each(self) -> Self:
        teachers = len(self.teachers)
        if self.domains:
            if len(self.domains) != teachers:
                raise ValueError(f"`domains` names {len(self.domains)} for {teachers} teachers")
            if len(set(self.domains)) < teachers:
                raise ValueError("`domains` must be all different: a row has one teacher")
            return self
        for name in ("data", "held_out"):
            count = len(getattr(self, name))
            if count != teachers and not (name == "held_out" and not count):
                raise ValueError(f"`{name}` names {count} datasets for {teachers} teachers")
        return self

    def check_data(self, data: Mapping[str, Any]) -> Iterable[str]:
        """Whether every row has a teacher."""
        names = dict.fromkeys((*self.data, *self.held_out)) if self.domains else ()
        for name in names:
            if name in data:
                yield from self._without_teacher(data[name])

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the student, and leave the best state in it."""
        parts = self._parts(self.data, ctx)
        for teacher, part in zip(self.teachers, parts, strict=True):
            if not part.examples:
                text = f"data {part.name}: no row is there for the teacher {teacher!r} to teach on"
                raise DataError([Problem(f"{text}. Give such rows, or leave it out")])
        streams = [stream_of(part, model, self, ctx) for part in parts]
        known = {
            name: ready_by_name(name, model, self.length, ctx)
            for name in dict.fromkeys(self.teachers)
        }
        teachers = [known[name] for name in self.teachers]
        kept = self._parts(self.held_out, ctx)
        held = [judged_on(part, model, self) if part.examples else [] for part in kept]
        firsts = [stream.batch(0) for stream in streams]
        starts = [("", *each) for each in zip(teachers, firsts, strict=True)]
        with self.training(model, ctx), self.guides(model, starts) as guides:
            some = [[guide] for guide in guides] or [[] for _ in teachers]
            mix = partial(self.mix, model)
            pairs = zip(teachers, some, strict=True)
            objectives = [toward(model, teacher, mix, guide) for teacher, guide in pairs]
            loss, score = _by_teacher(objectives, self.teachers), _mean(objectives, held)
            fit(model, loss, Turns(streams, ctx.seed), self, ctx, score)
        return model

    def _parts(self, names: Sequence[str], ctx: Context) -> list[Dataset]:
        """The rows of each of the teachers."""
        given: list[Dataset] = [ctx.data(name) for name in names]
        if not self.domains or not given:
            return given
        strange = [Problem(text) for dataset in given for text in self._without_teacher(dataset)]
        if strange:
            raise DataError(strange)
        rows, called = [row for each in given for row in each.examples], " and ".join(names)
        parts = [[row for row in rows if row.domain == domain] for domain in self.domains]
        return [
            Dataset(f"{called} ({domain})", part, "", classes(part))
            for domain, part in zip(self.domains, parts, strict=True)
        ]

    def _without_teacher(self, dataset: Dataset) -> Iterator[str]:
        strange = [row for row in dataset.examples if row.domain not in self.domains]
        known = ", ".join(self.domains)
        for row in strange[:_SHOWN]:
            where = row.where or f"data {dataset.name}"
            if row.domain is None:
                yield (
                    f"{where}: this row has no domain to choose its teacher by. Name the column "
                    "that holds it, as in `data: {train: {path: rows.jsonl, domain: topic}}`"
                )
                return
            yield (
                f"{where}: no teacher is for the domain {row.domain!r}; `domains` are {known}"
                f"{nearest(row.domain, list(self.domains))}"
            )
        if len(strange) > _SHOWN:
            yield f"data {dataset.name}: and {len(strange) - _SHOWN} more such rows"


def _by_teacher(
    objectives: Sequence[Objective], names: Sequence[str]
) -> Callable[[Batch, float], Loss]:
    """The loss toward whoever teaches a batch; its parts are called by the teacher."""

    def loss(batch: Batch, progress: float) -> Loss:
        source = cast("TurnBatch", batch).source
        found = objectives[source](batch, progress)
        parts = {f"{part}/{names[source]}": value for part, value in found.parts.items()}
        return Loss(found.value, found.count, parts)

    return loss


def _mean(
    objectives: Sequence[Objective], held: Sequence[Sequence[Batch]]
) -> Callable[[], float] | None:
    """The mean of the scores on held-out batches, if any: every task counts the same."""
    pairs = zip(objectives, held, strict=False)
    scores = [objective.score(batches) for objective, batches in pairs if batches]
    return (lambda: sum(score() for score in scores) / len(scores)) if scores else None
