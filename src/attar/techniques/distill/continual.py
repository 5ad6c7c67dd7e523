"""Learn another task and keep the earlier ones: distilled from its former self, with rehearsal."""

from __future__ import annotations

from functools import partial

from pydantic import Field

from attar.core.context import Context
from attar.core.step import DataRef, Step
from attar.core.traits import FLOAT
from attar.models.model import Model
from attar.techniques.distill._answers import Answers
from attar.techniques.distill._guided import GuidedUpdating
from attar.train.fit import fit
from attar.train.rows import held_out_of, labeled, stream_of
from attar.train.signals import toward
from attar.train.teacher import ready


class Continual(Answers, GuidedUpdating, Step, kind="distill/continual"):
    """One task after another (Learning without Forgetting, Li and Hoiem 2016, arXiv:1606.09282).

    The teacher is the model as it comes into this step. On every row the loss is weight x
    divergence from the former self + (1 - weight) x the task's own loss. Rows of earlier tasks
    among them are rehearsed with their labels and the former self's answers, as in DER++ (Buzzega
    et al. 2020, arXiv:2004.07211). `also` holds what leads to the answers to the former self, too.
    `measures.also` measures every stage on every task's held-out data.
    """

    version = 2
    needs = frozenset({FLOAT})
    shares = True
    promises = frozenset({"changed"})

    data: DataRef = Field("train", description="the dataset of the new task")
    earlier: tuple[DataRef, ...] = Field(
        (), description="datasets of earlier tasks, whose rows are rehearsed"
    )
    rehearsal: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="the share of rows that are of earlier tasks, drawn evenly from each of them",
    )
    learning_rate: float = Field(1e-4, gt=0, description="the highest learning rate")
    held_out: DataRef | None = Field(
        None,
        description="the dataset that tells which state is best; none, the default: the last is "
        "kept, for what is best on the new task may be what forgot most",
    )

    def bytes_each(self) -> int:
        """The former self is in memory beside what is trained."""
        return super().bytes_each() + 4

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the model, or an update of it, and leave the last or the best state in it."""
        stream = stream_of(labeled(self.data, model, ctx), model, self, ctx)
        batches = stream
        if self.earlier and self.rehearsal:
            others = [
                stream_of(labeled(name, model, ctx), model, self, ctx) for name in self.earlier
            ]
            batches = stream.with_some_of(others, self.rehearsal)
            ctx.note("rehearsed_rows", batches.rows - stream.rows)
        former = ready(model, model, self.length, ctx)
        held = held_out_of(self.held_out, model, self, ctx)
        guiding = self.guides(model, [("", former, batches.batch(0))])
        with self.training(model, ctx), guiding as guides:
            objective = toward(model, former, partial(self.mix, model), guides)
            fit(model, objective, batches, self, ctx, objective.score(held) if held else None)
        return model
