"""Train all weights on your data: plain fine-tuning, a fresh head included."""

from __future__ import annotations

from pydantic import Field

from attar.core.context import Context
from attar.core.step import ANSWERING, DataRef, Step
from attar.core.traits import FLOAT
from attar.models.model import Model
from attar.train.fit import fit
from attar.train.losses import Objective
from attar.train.rows import held_out_of, labeled, stream_of
from attar.train.schedule import Training
from attar.train.scoped import trained
from attar.train.towers import Matching, Weights


class Full(Training, Step, kind="adapt/full"):
    """Fine-tuning on the task's own loss: next token, masked tokens, class, or image and text.

    This is how a teacher is made for a task, and what distillation is compared with.
    """

    needs = frozenset({FLOAT})
    whole = True
    shares = True
    tasks = (*ANSWERING, "contrastive")
    media = True
    promises = frozenset({"changed"})

    data: DataRef = Field("train", description="the dataset to train on")
    held_out: DataRef | None = Field(
        "dev", description="the dataset that tells which state is best; none: the last is kept"
    )

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train, and leave the best state in the model."""
        dataset = labeled(self.data, model, ctx)
        matches = model.task == "contrastive"
        objective = Matching(model, Weights()) if matches else Objective(model)
        held = held_out_of(self.held_out, model, self, ctx)
        evaluate = objective.score(held) if held else None
        with trained(model, self.scope):
            fit(model, objective, stream_of(dataset, model, self, ctx), self, ctx, evaluate)
        return model
