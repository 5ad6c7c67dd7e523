"""Learn a teacher's vectors of whole texts: where they lie, and how alike they are."""

from __future__ import annotations

from attar.core.context import Context
from attar.core.step import TASKS, Step
from attar.models.model import Model
from attar.techniques.distill._embedding import EmbeddingSignal
from attar.techniques.distill._guided import GuidedTraining


class Embedding(EmbeddingSignal, GuidedTraining, Step, kind="distill/embedding"):
    """Vectors by cosine, by the similarities of a batch (Park et al. 2019, arXiv 1904.05068; Tung
    and Mori 2019, arXiv 1907.09682), and by contrast (van den Oord et al. 2018, arXiv 1807.03748).

    A text's vector is pooled as the model does it itself. Where widths differ a projection to the
    teacher's is learned, and left behind at the end. `also` adds other signals.
    """

    tasks = TASKS
    shares = True

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the student toward the teacher's vectors."""
        return self.follow(model, ctx, {"embedding": self})
