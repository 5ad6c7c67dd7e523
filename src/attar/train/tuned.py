"""Settings of steps that train an update of their own, on labels or under a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from attar.core.context import Context
from attar.core.scope import ModuleFact, Scope
from attar.core.step import ModelRef
from attar.core.traits import ADAPTER, Trait
from attar.models.model import Model
from attar.train.taught import Taught
from attar.train.updates import BYTES, Update


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
