"""Heal end to end where the memory is there for it, and else block by block."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import Field

from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import TASKS, DataRef, ModelRef, Step, Task
from attar.core.traits import QUANTIZED, Trait
from attar.layers import QuantizedLinear
from attar.models.model import Model
from attar.techniques.heal.blockwise import Blockwise
from attar.techniques.heal.lora import Lora
from attar.techniques.heal.scales import Scales

_PASSES, _LEAST = 4, 8  # of blockwise healing: passes over its sequences, and these


class Auto(Step, kind="heal/auto"):
    """Stands for one of the others here, which the plan shows and the key is made of.

    Where all weights are on a grid, their scales are distilled (`heal/scales`); else an adapter of
    low rank is, and merged (`heal/lora`). A model that does not fit the memory that this takes is
    trained block by block (`heal/blockwise`), where its blocks are as many and as wide as the
    teacher's; a model of vectors always is, and refused where they are not. Training block by block
    holds some of `data` out and reads no `held_out`.
    """

    needs = frozenset()
    tasks = TASKS
    promises = frozenset()

    teacher: ModelRef = Field("original", description="whom to learn from")
    data: DataRef = Field("train", description="the dataset to learn on; it needs no labels")
    held_out: DataRef | None = Field(
        "dev", description="the dataset that tells which state is best; none: the last is kept"
    )
    tokens: int = Field(250_000, ge=1024, description="how much to learn on, in tokens")
    length: int = Field(256, ge=8, description="tokens in a sequence, at most")

    def chosen(self, room: float, traits: Collection[Trait], task: Task, alike: bool) -> Step:
        """The step that this one stands for; each has its own idea of what to touch."""
        given = {"id", "scope"} & self.model_fields_set
        shared: dict[str, Any] = {name: getattr(self, name) for name in given}
        shared |= {"teacher": self.teacher, "data": self.data, "length": self.length}
        if task == "embedding" or (alike and room < Lora.training_bytes):
            sequences = max(_LEAST, self.tokens // (_PASSES * self.length))
            return Blockwise(**shared, sequences=sequences, epochs=_PASSES)
        kind = Scales if QUANTIZED in traits else Lora
        return kind(**shared, held_out=self.held_out, tokens=self.tokens)

    def apply(self, model: Model, ctx: Context) -> Model:
        """Heal as chosen for the model that is there."""
        names = set(model.select(self.scope))
        linears = [part for name, part in model.linears(Scope.linears()).items() if name in names]
        every = bool(linears) and all(isinstance(part, QuantizedLinear) for part in linears)
        traits = (QUANTIZED,) if every else ()
        return self.chosen(float("inf"), traits, model.task, alike=True).apply(model, ctx)
