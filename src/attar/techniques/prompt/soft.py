"""Learn embeddings of a prompt that stands before every text; the model stays as it is."""

from __future__ import annotations

from pydantic import Field

from attar.core.step import Step
from attar.train.tuned import Tuned
from attar.train.updates import SoftUpdate


class Soft(SoftUpdate, Tuned, Step, kind="prompt/soft"):
    """Prompt tuning (Lester et al. 2021, arXiv 2104.08691).

    The weights stay as they are, rounded or pruned ones too. The prompt is part of the model:
    its hidden states, logits and what it writes all come after it.
    """

    needs = frozenset()
    tasks = ("causal-lm",)

    learning_rate: float = Field(1e-2, gt=0, description="the highest learning rate")
