"""Heal in the way that fits what the weights are and the memory there is; the plan says which."""

from __future__ import annotations

from collections.abc import Set

from pydantic import Field

from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import DataRef, ModelRef, Step
from attar.core.traits import Trait
from attar.models.model import Model
from attar.techniques.heal.blockwise import Blockwise
from attar.techniques.heal.lora import Lora

_PASSES, _LEAST = 4, 8  # of blockwise healing: passes over its sequences, and these


class Auto(Step, kind="heal/auto"):
    """Stands for one of the other ways, which the plan shows and the result is named by.

    An adapter that is distilled and merged, through the rounding where weights are on a grid; and
    block by block where a model does not fit the memory that training takes.
    """

    needs = frozenset()
    promises = frozenset()

    teacher: ModelRef = Field("original", description="whom to learn from")
    data: DataRef = Field("train", description="the dataset to learn on; it needs no labels")
    held_out: DataRef | None = Field(
        "dev", description="the dataset that tells which state is best; none: the last is kept"
    )
    tokens: int = Field(250_000, ge=1024, description="how much to learn on, in tokens")
    length: int = Field(256, ge=8, description="tokens in a sequence, at most")

    def chosen(self, traits: Set[Trait], room: float) -> Step:
        """The step that this one stands for."""
        named = ("id", "teacher", "data", "length")
        shared = {name: getattr(self, name) for name in named}
        if self.scope != Scope.everything():  # else as each of them likes it
            shared["scope"] = self.scope
        if room < Lora.training_bytes:
            sequences = max(_LEAST, self.tokens // (_PASSES * self.length))
            return Blockwise(**shared, sequences=sequences, epochs=_PASSES)
        return Lora(**shared, held_out=self.held_out, tokens=self.tokens)

    def apply(self, model: Model, ctx: Context) -> Model:
        """Heal as chosen for the model that is there."""
        return self.chosen(set(), float("inf")).apply(model, ctx)
