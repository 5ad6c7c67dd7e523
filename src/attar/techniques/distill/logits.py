"""Learn a teacher's predictions: divergence of the logits, mixed with the task's own loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from attar.core.context import Context
from attar.core.step import Step, Unkeyed, is_address
from attar.core.traits import FLOAT
from attar.data.example import Dataset
from attar.data.tokenize import text_of
from attar.errors import UserError
from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.ops.sketch import COLDEST
from attar.techniques.distill._answers import Answers, Weight
from attar.techniques.distill._cache import Cache, asked_of, cached
from attar.techniques.distill._guided import GuidedTraining
from attar.train.fit import Batches
from attar.train.losses import Objective
from attar.train.served import ByAddress
from attar.train.signals import Signal

_COMPARED = 64  # rows by which a server's tokenizer is compared with the student's, the first


class Logits(ByAddress, Answers, GuidedTraining, Step, kind="distill/logits"):
    """Distillation of the output distribution (Hinton et al. 2015, arXiv:1503.02531).

    The loss is weight x divergence + (1 - weight) x the task's own loss. Rows of a classifier
    that have no label count with the divergence alone, so unlabeled data can be mixed in.
    States are compared on held-out data by the same loss at the mean of `weight` and
    `weight_end`, so that scores compare along a training whose weights change.

    With `cache` the teacher is asked about each row once, and what it said is kept in the store:
    later epochs, other students, other divergences and other temperatures read it, and where
    everything is there the teacher is not loaded at all. `teacher` may then also be a server's
    address and the name of a model there, `http://127.0.0.1:8000/v1#name`.
    """

    version = 2
    needs = frozenset({FLOAT})
    whole = True
    shares = True
    media = True
    promises = frozenset({"changed"})
    served = frozenset({"teacher"})

    targets: Literal["soft", "hard"] = Field(
        "soft",
        description="soft: the teacher's whole distribution; hard: its likeliest class or token, "
        "for which divergence and temperature mean nothing",
    )
    weight: Weight = 1.0
    learning_rate: float = Field(3e-4, gt=0, description="the highest learning rate")
    cache: Cache | None = Field(
        None,
        description="keep what the teacher says on disk: {top: 64}, {sampled: 64}, or {} for a "
        "classifier; none: it is run for every batch",
    )
    cache_limit: Annotated[float, Unkeyed()] = Field(
        50.0, gt=0, description="gigabytes that the answers of all teachers in the store may take"
    )

    @model_validator(mode="after")
    def _can_be_kept(self) -> Self:
        if is_address(self.teacher) and self.cache is None:
            raise ValueError(
                "a teacher behind an address is asked once about each row: write cache: {top: 20}, "
                "or as many tokens as the server tells of"
            )
        if self.cache is not None and self.also.signals():
            raise ValueError(
                "`also` reads what a teacher makes on its way, which no cache holds. Leave out "
                "`cache`, or `also`"
            )
        if self.cache is not None and (self.cache.top or self.cache.sampled):
            why = self._unkept(self.cache)
            if why:
                raise ValueError(why)
        return self

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the student, and leave the best state in it."""
        if self.cache is not None and model.family.media:
            raise UserError(
                "what a teacher says is kept by the tokens of a row, and images and sounds have "
                "none. Leave out `cache`"
            )
        if self.cache is not None and model.task != "classification":
            why = self._unkept(self.cache)
            if model.task == "masked-lm":
                why = (
                    "each epoch masks other tokens, so what a teacher said of one is of no use in "
                    "the next. Leave out `cache`"
                )
            if why:
                raise UserError(why)
        if is_address(self.teacher) and model.task != "causal-lm":
            raise UserError("a teacher behind an address can only be one for causal-lm")
        return self.follow(model, ctx, {}, lambda progress: self.mix(model, progress))

    @contextmanager
    def objective(
        self,
        model: Model,
        ctx: Context,
        signals: Mapping[str, Signal],
        mix: Callable[[float], Mix],
        stream: Batches,
    ) -> Iterator[Objective]:
        """The loss toward the teacher, or toward what is kept of its answers."""
        if self.cache is None:
            with super().objective(model, ctx, signals, mix, stream) as objective:
                yield objective
            return
        data: Dataset = ctx.data(self.data)
        first = islice(data.examples, _COMPARED)
        text = "\n".join(text_of(row, model.tokenizer, data.name) for row in first)
        asked = asked_of(self.teacher, self.cache, self.server, model, self.length, ctx, text)
        with cached(self.cache, self.cache_limit, model, ctx, self.teacher, asked) as teacher:
            yield Objective(model, teacher, mix)

    def mix(self, model: Model, progress: float) -> Mix:
        """The loss at a share of the training done, from 0 to 1."""
        found = super().mix(model, progress)
        return replace(found, divergence="hard") if self.targets == "hard" else found

    def _unkept(self, cache: Cache) -> str:
        """What is wanted of a language model's answers and not kept of them, if anything."""
        hard, temperature = self.targets == "hard", self.temperature or 1.0
        if cache.sampled is not None and is_address(self.teacher):
            return "a server tells of its likeliest tokens alone: write cache: {top: 20}"
        if cache.sampled is not None and (hard or self.divergence != "forward"):
            return "a sample tells the forward divergence alone: write cache: {top: 64}"
        if cache.sampled is not None and temperature != 1.0:
            return "a sample tells the divergence at temperature 1 alone: write cache: {top: 64}"
        if self.divergence == "logits" and not hard:
            return "logits are not kept, probabilities are: take another divergence, or no `cache`"
        if temperature < COLDEST and not hard:
            return f"what is kept tells nothing below temperature {COLDEST}"
        return ""
