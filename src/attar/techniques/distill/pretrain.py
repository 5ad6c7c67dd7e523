"""Learn a teacher's answers to BERT's own two tasks on raw text: what is masked, what follows."""

from __future__ import annotations

from pydantic import Field

from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import ModelRef, Step
from attar.core.traits import FLOAT
from attar.errors import UserError
from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.techniques.distill._guided import Beside
from attar.train.pretraining import Heads, Pretraining
from attar.train.schedule import moved
from attar.train.scoped import trained
from attar.train.teacher import ready


class Pretrain(Beside, Pretraining, Step, kind="distill/pretrain"):
    """Pretraining from a teacher's heads, as in DistilBERT (Sanh et al. 2019, arXiv 1910.01108).

    Of what is masked, and of whether one text follows another, the loss is weight x divergence +
    (1 - weight) x what the text itself says. `also` adds signals on what leads to the answers.
    """

    version = 3
    needs = frozenset({FLOAT})
    whole = True
    tasks = ("masked-lm",)
    shares = True

    teacher: ModelRef = Field(
        "original", description="whom to learn from: the original, an earlier stage, or a path"
    )
    weight: float = Field(
        0.5,
        gt=0,
        le=1,
        description="weight of the teacher's answers, soft; what the text says, hard, has the rest",
    )
    weight_end: float | None = Field(
        None, ge=0, le=1, description="what the weight moves to, evenly, as training goes on"
    )
    temperature: float = Field(
        1.0, gt=0, description="what both sides' logits are divided by in the divergence"
    )
    scope: Scope = Field(Scope.everything(), description="the modules to train")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the student, and leave the best state in it."""
        self.insist(model.facts())
        teacher = ready(ctx.model(self.teacher), model, self.length, ctx)
        if self.next_sentence and not teacher.tells_next:
            raise UserError(
                "the teacher has no head that tells next sentences. Set next_sentence: 0, or "
                "take one that was pretrained with it (adapt/pretrain)"
            )
        rows = self.rows(self.data, model, ctx)
        guiding = self.guides(model, [("", teacher, rows.batch(0))])
        with trained(model, self.scope), guiding as guides:
            heads = Heads(model, self.next_sentence, teacher, self.mix, *guides)
            self.learn(heads, rows, ctx)
        return model

    def mix(self, progress: float) -> Mix:
        """The loss of either task at a share of the training done, from 0 to 1."""
        weight = moved(self.weight, self.weight_end, progress)
        return Mix("forward", self.temperature, weight, 1 - weight)
