"""The batches of a trained step: a stream to train on and a few to judge on."""

from __future__ import annotations

from attar.core.context import Context
from attar.data.batches import PACKED, Batch, Stream, held_out
from attar.data.example import Dataset
from attar.errors import DataError, Problem, UserError
from attar.models.model import Model
from attar.models.places import length_for
from attar.train.schedule import Training

_SEQUENCES, _ROWS = 16, 512


def labeled(name: str, model: Model, ctx: Context) -> Dataset:
    """The dataset of that name; raises DataError where a classifier finds no label in it."""
    if model.task == "embedding":
        raise UserError(
            "a model for embedding has no answers to learn by itself. Let it learn a teacher's "
            "vectors (distill/embedding)"
        )
    dataset = ctx.data(name)
    if model.task == "classification" and all(row.label is None for row in dataset.examples):
        text = (
            f"data {name!r} has no labels, so there is no loss of the task's own. Give labeled "
            "rows, or learn from a teacher (distill/logits)"
        )
        raise DataError([Problem(text)])
    return dataset


def stream_of(dataset: Dataset, model: Model, schedule: Training, ctx: Context) -> Stream:
    """Shuffled batches without end. Raises ModelError where ids and model do not fit."""
    stream = Stream(
        dataset,
        model.tokenizer,
        model.task,
        length_for(model, schedule.length),
        schedule.batch,
        ctx.seed,
        labels=model.labels or None,
    )
    if model.vocabulary:
        stream.check(model.vocabulary)
    return stream


def held_out_of(name: str | None, model: Model, schedule: Training, ctx: Context) -> list[Batch]:
    """Batches to judge on; none where the recipe has no data of that name."""
    if name is None:
        return []
    try:
        dataset = ctx.data(name)
    except KeyError:
        return []
    return judged_on(dataset, model, schedule)


def judged_on(dataset: Dataset, model: Model, schedule: Training) -> list[Batch]:
    """Batches of a dataset to judge on."""
    return held_out(
        dataset,
        model.tokenizer,
        model.task,
        length_for(model, schedule.length),
        schedule.batch,
        schedule.evaluate_on or (_SEQUENCES if model.task in PACKED else _ROWS),
        labels=model.labels or None,
    )
