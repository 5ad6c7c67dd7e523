"""Learn how a teacher of two towers matches images with texts; experimental."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator

from attar.core.context import Context
from attar.core.keys import seed_of
from attar.core.scope import Scope
from attar.core.step import DataRef, ModelRef, Step
from attar.core.traits import FLOAT
from attar.models.model import Model
from attar.train.fit import fit
from attar.train.rows import held_out_of, stream_of
from attar.train.schedule import Training
from attar.train.scoped import trained
from attar.train.teacher import ready
from attar.train.towers import Weights, matching


class Contrastive(Training, Step, kind="distill/contrastive"):
    """CLIP-like students (CLIP-KD, Yang et al. 2024, arXiv 2307.12732; affinity mimicking of
    TinyCLIP, Wu et al. 2023, arXiv 2309.12314).

    Each image's similarities to the texts of a batch, and each text's to its images, are matched to
    the teacher's by KL, and vectors to its vectors, beside the contrastive loss itself. Texts that
    come twice in a batch count as each other's. The larger the batch, the more there is to match.
    Experimental: tried with one teacher trained here, where it gained nothing over plain training
    (docs/log.md), and with no pretrained one.
    """

    needs = frozenset({FLOAT})
    whole = True
    tasks = ("contrastive",)
    shares = True
    media = True
    promises = frozenset({"changed"})

    teacher: ModelRef = Field(
        "original", description="whom to learn from: the original, an earlier stage, or a path"
    )
    relations: float = Field(
        1.0, ge=0, description="weight of KL(teacher || student) over rows and columns"
    )
    features: float = Field(
        8.0,
        ge=0,
        description="weight of the squared distance to the teacher's vectors; to another width a "
        "linear is learned, and left behind",
    )
    interactive: float = Field(
        1.0,
        ge=0,
        description="weight of telling the teacher's vector of a row's other half from all others",
    )
    task: float = Field(1.0, ge=0, description="weight of the contrastive loss itself")
    batch: int = Field(64, ge=2, description="rows at a time, on each process: all are compared")
    learning_rate: float = Field(3e-4, gt=0, description="the highest learning rate")
    data: DataRef = Field("train", description="the dataset to learn on: images with their texts")
    held_out: DataRef | None = Field(
        "dev", description="the dataset that tells which state is best; none: the last is kept"
    )
    scope: Scope = Field(Scope.everything(), description="the modules to train")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.relations or self.features or self.interactive):
            raise ValueError(
                "one of relations, features and interactive must have weight. Without a teacher, "
                "take adapt/full"
            )
        return self

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the student, and leave the best state in it."""
        teacher = ready(ctx.model(self.teacher), model, self.length, ctx)
        stream = stream_of(ctx.data(self.data), model, self, ctx)
        held = held_out_of(self.held_out, model, self, ctx)
        weights = Weights(self.task, self.relations, self.features, self.interactive)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(ctx.seed, "turns"))
            objective = matching(model, teacher, weights, stream.batch(0))
            with trained(model, self.scope), objective as loss:
                fit(model, loss, stream, self, ctx, loss.score(held) if held else None)
        return model
