"""Settings of steps that train an update: one of their own, or one in the place of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

from pydantic import Field

from attar.core.context import Context
from attar.core.scope import ModuleFact, Scope
from attar.core.step import ModelRef
from attar.core.traits import ADAPTER, Trait
from attar.models.model import Model
from attar.train.schedule import Training
from attar.train.scoped import trained
from attar.train.taught import Taught
from attar.train.updates import BYTES, Few, Update


class Tuned(Update, Taught):
    """What few parameters learn, mixed into a step together with which ones they are."""

    adds: ClassVar[frozenset[Trait]] = frozenset({ADAPTER})
    whole: ClassVar[bool] = True
    training_bytes: ClassVar[int] = BYTES
    promises: ClassVar[frozenset[str]] = frozenset({"changed"})

    teacher: ModelRef | None = Field(
        None,
        description="whom to learn from: the original, an earlier stage, a path, or none for the "
        "task's own loss alone",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="how fast what is trained returns to nothing"
    )
    scope: Scope = Field(Scope.everything(), description="the modules to touch")

    def touched(self, modules: Sequence[ModuleFact]) -> Sequence[str]:
        """The modules whose weights something learned goes with afterwards."""
        return self.lasting(modules, self.scope)

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the update, and leave what it leaves."""
        with self.around(model, self.scope, self.length, ctx):
            self.learn(model, ctx)
        return model


class Updating(Training):
    """Training of the weights, or of an update in their place; fields of a step."""

    whole: ClassVar[bool] = True
    training_bytes: ClassVar[int] = 16
    adds: ClassVar[frozenset[Trait]] = frozenset({ADAPTER})  # where `update` leaves one
    forbids: ClassVar[frozenset[Trait]] = frozenset()

    scope: Scope = Field(Scope.everything(), description="the modules to train")
    update: Few = Field(
        Few(),
        description="what is trained instead of the weights, such as `lora: {rank: 8}`: lora, "
        "dora, soft, p_tuning or prefix",
    )

    def bytes_each(self) -> int:
        """Few parameters have gradients and moments where `update` says so."""
        return BYTES if self.update.chosen() else self.training_bytes

    def forbidden(self) -> frozenset[Trait]:
        """What weights may not be; `update` may say more."""
        few = self.update.chosen()
        return self.forbids if few is None else self.forbids | few.forbids

    def touched(self, modules: Sequence[ModuleFact]) -> Sequence[str]:
        """Where `update` leaves something that goes with the weights as they are."""
        few = self.update.chosen()
        return [] if few is None else few.lasting(modules, self.scope)

    def training(self, model: Model, ctx: Context) -> AbstractContextManager[None]:
        """Let what is trained want a gradient, as long as it lasts."""
        few = self.update.chosen()
        if few is None:
            return trained(model, self.scope)
        return few.around(model, self.scope, self.length, ctx)
