"""Train an adapter of low rank for the directions of weights, and their sizes apart."""

from __future__ import annotations

from pydantic import Field

from attar.core.scope import Scope
from attar.core.step import Step
from attar.core.traits import FLOAT
from attar.train.tuned import Tuned
from attar.train.updates import DoraUpdate


class Dora(DoraUpdate, Tuned, Step, kind="adapt/dora"):
    """DoRA (Liu et al. 2024, arXiv 2402.09353) as PEFT has it; in all else as adapt/lora.

    One that is kept is for `attar.load` and PEFT: `from_pretrained` of transformers 5.23 passes
    over the sizes that it learned.
    """

    needs = frozenset({FLOAT})

    learning_rate: float = Field(1e-3, gt=0, description="the highest learning rate")
    scope: Scope = Field(
        Scope.of("linears", "other"),
        description="the linears of blocks to adapt, and a classifier's head to train in full",
    )
