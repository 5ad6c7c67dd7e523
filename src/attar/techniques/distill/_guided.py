"""Training toward a teacher by signals: settings that every step with signals shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from attar.core.context import Context
from attar.core.scope import ModuleFact
from attar.core.step import DataRef, ModelRef
from attar.data.batches import Batch
from attar.errors import UserError
from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.techniques.distill._attention import AttentionSignal
from attar.techniques.distill._embedding import EmbeddingSignal
from attar.techniques.distill._hidden import HiddenSignal
from attar.train.fit import Batches, fit
from attar.train.losses import Objective
from attar.train.rows import held_out_of, stream_of
from attar.train.signals import Guide, Signal, guided, guiding
from attar.train.teacher import ready
from attar.train.tuned import Updating


class Also(BaseModel):
    """Signals beside a step's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: HiddenSignal | None = Field(
        default=None, description="hidden states, as distill/hidden"
    )
    attention: AttentionSignal | None = Field(
        default=None, description="relations of attention, as distill/attention"
    )
    embedding: EmbeddingSignal | None = Field(
        default=None, description="vectors of whole texts, as distill/embedding"
    )

    def signals(self) -> dict[str, Signal]:
        """Those that are there, by name."""
        named = {
            "hidden": self.hidden,
            "attention": self.attention,
            "embedding": self.embedding,
        }
        return {name: signal for name, signal in named.items() if signal is not None}


def silent(_: float) -> Mix:
    """Nothing of the answers, at any time."""
    return Mix(weight=0.0, task_weight=0.0)


class Beside(BaseModel):
    """Other signals, mixed into a step as a field of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    if TYPE_CHECKING:
        batch: int  # the step's own

    also: Also = Field(
        Also(), description="other signals, each with its weight: hidden, attention, embedding"
    )

    @model_validator(mode="after")
    def _has_others(self) -> Self:
        signals = [*self.also.signals().values(), *([self] if isinstance(self, Signal) else [])]
        if self.batch == 1 and any(signal.within_batch for signal in signals):
            raise ValueError(
                "with batch: 1 a text's vector has no others to be compared with. Write a larger "
                "batch, or weight for `cosine` alone"
            )
        return self

    def guides(
        self, model: Model, teachers: Sequence[tuple[str, Model, Batch]]
    ) -> AbstractContextManager[list[Guide]]:
        """Teachers by these signals: a label for each, if any, and a batch to begin with."""
        return guiding(model, teachers, self.also.signals())


class GuidedUpdating(Beside, Updating):
    """Other signals, of the weights or of an update in their place."""

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether what is trained leaves the signals something to compare."""
        few = self.update.chosen()
        signals = [*self.also.signals().values(), *([self] if isinstance(self, Signal) else [])]
        if few is not None and few.shifts and signals:
            yield (
                "a prompt of embeddings gives blocks more positions than the teacher's have, so "
                "signals do not compare. Take `update: {prefix: {}}` or `lora`"
            )
        if few is not None and few.widens and any(signal.maps for signal in signals):
            yield (
                "a prefix gives attention's maps more columns than the teacher's have. Relate "
                "queries, keys or values instead of maps, or take `update: {lora: {}}`"
            )


class GuidedTraining(GuidedUpdating):
    """A teacher, data and other signals, mixed into a step as fields of its own."""

    teacher: ModelRef = Field(
        "original", description="whom to learn from: the original, an earlier stage, or a path"
    )
    learning_rate: float = Field(1e-4, gt=0, description="the highest learning rate")
    data: DataRef = Field("train", description="the dataset to learn on; it needs no labels")
    held_out: DataRef | None = Field(
        "dev", description="the dataset that tells which state is best; none: the last is kept"
    )

    def follow(
        self,
        model: Model,
        ctx: Context,
        own: Mapping[str, Signal],
        mix: Callable[[float], Mix] = silent,
    ) -> Model:
        """Train the student by these signals and those beside them, and by its answers."""
        stream = self.stream(model, ctx)
        held = held_out_of(self.held_out, model, self, ctx)
        beside = self.also.signals()
        for name in own.keys() & beside.keys():
            raise UserError(f"`also` holds {name}, which this step is already. Leave it out there")
        signals = {**own, **beside}
        if signals and model.family.media:
            raise UserError(
                "signals compare what is made of each token, and images and sounds have none. "
                "Leave out `also`"
            )
        with (
            self.training(model, ctx),
            self.objective(model, ctx, signals, mix, stream) as objective,
        ):
            fit(model, objective, stream, self, ctx, objective.score(held) if held else None)
        return model

    def stream(self, model: Model, ctx: Context) -> Batches:
        """What the student is trained on."""
        return stream_of(ctx.data(self.data), model, self, ctx)

    @contextmanager
    def objective(
        self,
        model: Model,
        ctx: Context,
        signals: Mapping[str, Signal],
        mix: Callable[[float], Mix],
        stream: Batches,
    ) -> Iterator[Objective]:
        """The loss toward the teacher, as long as this lasts."""
        teacher = ready(ctx.model(self.teacher), model, self.length, ctx)
        if not signals:
            yield Objective(model, teacher, mix)
            return
        with guided(model, teacher, signals, mix, stream.batch(0)) as objective:
            yield objective
