"""Pretrain an encoder on raw text: masked tokens, and whether one text follows another."""

from __future__ import annotations

from attar.core.context import Context
from attar.core.step import Step
from attar.core.traits import FLOAT
from attar.models.model import Model
from attar.train.pretraining import Heads, Pretraining
from attar.train.scoped import trained


class Pretrain(Pretraining, Step, kind="adapt/pretrain"):
    """BERT's own two tasks (Devlin et al. 2019, arXiv 1810.04805), without a teacher.

    Half of the pairs are two texts in a row, in half the second is from another document. What
    is masked is drawn anew in every epoch. With `model.fresh` it begins with random weights.
    """

    version = 3
    needs = frozenset({FLOAT})
    whole = True
    tasks = ("masked-lm",)
    shares = True

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train, and leave the best state in the model."""
        self.insist(model.facts())
        rows = self.rows(self.data, model, ctx)
        with trained(model, self.scope):
            self.learn(Heads(model, self.next_sentence), rows, ctx)
        return model
