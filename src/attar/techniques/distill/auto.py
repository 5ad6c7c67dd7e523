"""Distill by the signal that fits the model's task and the memory there is."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Self

from pydantic import Field, model_validator

from attar.core.context import Context
from attar.core.step import TASKS, DataRef, ModelRef, Step, Task
from attar.core.traits import FLOAT, Trait
from attar.models.model import Model
from attar.techniques.distill._guided import Also
from attar.techniques.distill._hidden import HiddenSignal
from attar.techniques.distill.contrastive import Contrastive
from attar.techniques.distill.embedding import Embedding
from attar.techniques.distill.logits import Logits
from attar.train.updates import Few, LoraUpdate


class Auto(Step, kind="distill/auto"):
    """Stands for one of the others here, which the plan shows and the key is made of.

    Language models and classifiers learn the teacher's answers (`distill/logits`), models of
    vectors its vectors and hidden states (`distill/embedding`), towers how it matches
    (`distill/contrastive`). Where the memory is too small to train every weight, an adapter is
    trained and merged. Of the signals measured (`benchmarks/signals.py`) none is better than
    these by more than their intervals.
    """

    needs = frozenset({FLOAT})
    promises = frozenset()
    tasks = (*TASKS, "contrastive")
    media = True

    teacher: ModelRef = Field(
        "original", description="whom to learn from: the original, an earlier stage, or a path"
    )
    data: DataRef = Field("train", description="the dataset to learn on; it needs no labels")
    held_out: DataRef | None = Field(
        "dev", description="the dataset that tells which state is best; none: the last is kept"
    )
    epochs: float | None = Field(
        None, gt=0, description="passes over the data; 1 where no tokens are given"
    )
    tokens: int | None = Field(None, ge=1, description="tokens to train on, instead of epochs")
    length: int = Field(256, ge=8, description="tokens in a sequence, at most")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.tokens is not None:
            raise ValueError("epochs and tokens both say how long to train; keep one")
        return self

    def chosen(self, room: float, traits: Collection[Trait], task: Task, alike: bool) -> Step:
        """The step that this one stands for."""
        given: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        if task == "contrastive":
            return Contrastive(**given)
        adapter = LoraUpdate.model_validate({})
        if room < Logits.training_bytes and not adapter.forbids & set(traits):
            given["update"] = Few(lora=adapter)
        if task == "embedding":
            beside = Also(hidden=HiddenSignal.model_validate({}))
            return Embedding(cosine=1.0, similarities=0.0, also=beside, **given)
        return Logits(**given)

    def apply(self, model: Model, ctx: Context) -> Model:
        """Distill as chosen for the model that is there."""
        return self.chosen(float("inf"), (), model.task, alike=False).apply(model, ctx)
