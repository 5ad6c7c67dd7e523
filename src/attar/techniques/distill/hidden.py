"""Learn a teacher's hidden states, block by block, whatever the widths and the depths."""

from __future__ import annotations

from attar.core.context import Context
from attar.core.step import TASKS, Step
from attar.models.model import Model
from attar.techniques.distill._guided import GuidedTraining
from attar.techniques.distill._hidden import HiddenSignal


class Hidden(HiddenSignal, GuidedTraining, Step, kind="distill/hidden"):
    """Hidden states as in TinyBERT (Jiao et al. 2020, arXiv 1909.10351), a signal of its own.

    Where widths differ a projection is learned for each block, started at least squares, and left
    behind at the end. `also` adds other signals.
    """

    version = 2
    tasks = TASKS
    shares = True

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the student toward the teacher's states."""
        return self.follow(model, ctx, {"hidden": self})
