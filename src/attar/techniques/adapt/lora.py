"""Train an adapter of low rank, on labels or under a teacher; merged, or kept as it is."""

from __future__ import annotations

from pydantic import Field

from attar.core.scope import Scope
from attar.core.step import Step
from attar.core.traits import FLOAT
from attar.train.tuned import Tuned
from attar.train.updates import LoraUpdate


class Lora(LoraUpdate, Tuned, Step, kind="adapt/lora"):
    """LoRA (Hu et al. 2021, arXiv 2106.09685) as PEFT has it.

    An adapter that is kept lies beside the weights in PEFT's own files: `attar.load` and
    `from_pretrained` of transformers give the adapted model, PEFT reads the adapter alone, and no
    step comes after. A classifier's head is trained in full, and is among the weights. On
    rounded or pruned weights take heal/lora, which keeps codes and zeros.
    """

    needs = frozenset({FLOAT})

    learning_rate: float = Field(1e-3, gt=0, description="the highest learning rate")
    scope: Scope = Field(
        Scope.of("linears", "other"),
        description="the linears of blocks to adapt, and a classifier's head to train in full",
    )
