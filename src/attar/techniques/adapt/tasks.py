"""Train one trunk for several tasks, a head each, on labels or under a teacher for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import nn

from attar.core.context import Context
from attar.core.keys import seed_of
from attar.core.scope import ModuleFact
from attar.core.step import DataRef, ModelRef, Step
from attar.core.traits import FLOAT, HEADED
from attar.errors import UserError
from attar.layers import Heads, swap
from attar.layers.heads import NAME
from attar.models.model import Model
from attar.models.tasks import answers_of, trunk_width
from attar.ops.chunked import Mix
from attar.train.fit import fit
from attar.train.losses import Objective
from attar.train.rows import held_out_of, labeled, stream_of
from attar.train.schedule import Training
from attar.train.scoped import trained
from attar.train.several import Mixed, Part, Several
from attar.train.teacher import ready


class Tasks(Training, Step, kind="adapt/tasks"):
    """The model's own task, `data`, and further ones, each named by its dataset.

    A further task has labels of its own and a fresh head, a linear in the place of the model's
    last. The result answers its own task; `attar.load(path, head="mood")` gives the classifier
    for the task of the dataset `mood`. States are compared by the mean over tasks of the
    held-out loss, and each task's held-out accuracy is in the report.
    """

    needs = frozenset({FLOAT})
    forbids = adds = frozenset({HEADED})
    tasks = ("classification",)
    whole = True
    shares = True
    promises = frozenset({"changed"})

    data: DataRef = Field("train", description="the dataset of the model's own task")
    others: tuple[DataRef, ...] = Field(
        min_length=1, description="the datasets of further tasks, each with labels of its own"
    )
    held_out: DataRef | None = Field(
        "dev", description="held-out data of the model's own task; none: the last state is kept"
    )
    others_held_out: tuple[DataRef, ...] = Field(
        (), description="held-out data of the further tasks, in their order, or none at all"
    )
    teachers: tuple[ModelRef, ...] = Field(
        (),
        description="whom each task is learned from, the model's own first, or none at all for "
        "labels alone; a teacher's classes are its task's",
    )
    weight: float = Field(
        1.0,
        ge=0,
        le=1,
        description="weight of KL(teacher || student) where there are teachers; the task's own "
        "loss has the rest",
    )
    temperature: float = Field(
        2.0, gt=0, description="what both sides' logits are divided by in the divergence"
    )
    sampling: float = Field(
        2.0,
        ge=1,
        description="a task of n rows is drawn in proportion to n^(1 / sampling); 1: by its rows; "
        "the higher, the more evenly",
    )
    learning_rate: float = Field(1e-4, gt=0, description="the highest learning rate")

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        count = len(self.others)
        if len({self.data, *self.others}) != count + 1:
            raise ValueError("a dataset is named twice; each is a task of its own")
        if self.others_held_out and len(self.others_held_out) != count:
            raise ValueError(f"`others_held_out` names no dataset for each of {count} tasks")
        if self.teachers and len(self.teachers) != count + 1:
            raise ValueError(f"`teachers` names no model for each of {count + 1} tasks")
        return self

    def foreign(self) -> set[str]:
        """The further tasks' datasets, whose labels are not the recipe's."""
        return {*self.others, *self.others_held_out}

    def touched(self, modules: Sequence[ModuleFact]) -> Sequence[str]:
        """All of the trunk, whatever of it is trained: heads go by it."""
        return [fact.name for fact in modules]

    def apply(self, model: Model, ctx: Context) -> Model:
        """Add the heads, train all, and leave the best state."""
        if isinstance(there := getattr(model.module, NAME, None), Heads):
            raise UserError(
                f"the model has heads for {', '.join(there.labels)} already, which would be lost. "
                "Name all further tasks in one adapt/tasks"
            )
        names = (self.data, *self.others)
        datasets = [labeled(name, model, ctx) for name in names]
        classes = {n: data.labels for n, data in zip(names[1:], datasets[1:], strict=True)}
        heads = self._install(model, classes, ctx.seed)
        place = answers_of(model)
        own = model.module.get_submodule(place)
        helds = [self.held_out, *(self.others_held_out or (None,) * len(self.others))]
        parts: list[Part] = []
        for index, (dataset, head) in enumerate(zip(datasets, (own, *heads), strict=True)):
            labels = model.labels if index == 0 else dataset.labels
            one = Model(model.module, model.tokenizer, model.task, labels)
            objective = self._objective(one, index, ctx)
            held = held_out_of(helds[index], one, self, ctx)
            parts.append(Part(names[index], one, head, objective, held))
        several = Several(parts, place)
        streams = [
            stream_of(dataset, part.model, self, ctx)
            for dataset, part in zip(datasets, parts, strict=True)
        ]
        with trained(model, self.scope):
            heads.requires_grad_(True)
            fit(model, several, Mixed(streams, self.sampling, ctx.seed), self, ctx, several.score())
        for name, share in several.accuracies().items():
            ctx.note(f"accuracy of {name}", round(share, 4))
        return model

    def _install(self, model: Model, classes: dict[str, tuple[str, ...]], seed: int) -> Heads:
        heads = Heads(trunk_width(model), classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "heads"))
            for head in heads:
                nn.init.normal_(head.weight, std=model.config.initializer_range)  # pyright: ignore
        heads.to(model.device, model.module.dtype)
        swap(model.module, NAME, heads)
        return heads

    def _objective(self, model: Model, index: int, ctx: Context) -> Objective:
        if not self.teachers:
            return Objective(model)
        teacher = ready(ctx.model(self.teachers[index]), model, self.length, ctx)
        mix = Mix("forward", self.temperature, self.weight, 1 - self.weight)
        return Objective(model, teacher, lambda _: mix)
