"""Learn a prompt of embeddings through a small network that is left behind at the end."""

from __future__ import annotations

from pydantic import Field

from attar.core.step import Step
from attar.train.tuned import Tuned
from attar.train.updates import PTuningUpdate


class PTuning(PTuningUpdate, Tuned, Step, kind="prompt/p-tuning"):
    """P-tuning (Liu et al. 2021, arXiv 2103.10385) with PEFT's encoder.

    What the encoder makes is added to the embeddings that the prompt begins as. The weights stay
    as they are, rounded or pruned ones too. The prompt is part of the model: its hidden states,
    logits and what it writes all come after it.
    """

    needs = frozenset()
    tasks = ("causal-lm",)

    learning_rate: float = Field(1e-3, gt=0, description="the highest learning rate")
