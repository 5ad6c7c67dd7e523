"""Learn keys and values that every block's attention finds before every text."""

from __future__ import annotations

from pydantic import Field

from attar.core.step import Step
from attar.train.tuned import Tuned
from attar.train.updates import PrefixUpdate


class Prefix(PrefixUpdate, Tuned, Step, kind="prompt/prefix"):
    """Prefix tuning (Li and Liang 2021, arXiv 2101.00190), begun as what real tokens leave behind.

    With that beginning it needs no network to make it. The weights stay as they are, rounded or
    pruned ones too. The prompt is part of the model: its hidden states, logits and what it writes
    all come after it.
    """

    needs = frozenset()
    tasks = ("causal-lm",)

    learning_rate: float = Field(1e-2, gt=0, description="the highest learning rate")
