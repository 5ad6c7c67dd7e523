"""Learn how a teacher's tokens attend to each other, whatever widths and numbers of heads."""

from __future__ import annotations

from attar.core.context import Context
from attar.core.step import TASKS, Step
from attar.models.model import Model
from attar.techniques.distill._attention import AttentionSignal
from attar.techniques.distill._guided import GuidedTraining


class Attention(AttentionSignal, GuidedTraining, Step, kind="distill/attention"):
    """Relations of queries, keys and values (MiniLMv2, Wang et al. 2021, arXiv 2012.15828).

    Of the student's last block and one of the teacher's, or by `layers` of all; queries and keys
    before any rotation. Or attention's own maps (MiniLM, Wang et al. 2020, arXiv 2002.10957), after
    rotation and masks; or an encoder's scores before the softmax, by squares (TinyBERT, Jiao et al.
    2020, arXiv 1909.10351, equation 7). `also` adds other signals.
    """

    version = 2
    tasks = TASKS
    shares = True

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the student toward the teacher's relations."""
        return self.follow(model, ctx, {"attention": self})
