"""Train each block in turn until its outputs are those of the original's block."""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field

from attar.calibrate.matching import (
    Matched,
    Matching,
    calibration_to_match,
    match,
    taught_and_held,
    tell_matched,
)
from attar.calibrate.view import BlockView
from attar.calibrate.walk import walk
from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import TASKS, DataRef, ModelRef, Step
from attar.errors import UserError
from attar.models.model import Model
from attar.train.scoped import freed

_OPTIMIZER = partial(torch.optim.AdamW, weight_decay=0.0, betas=(0.9, 0.95))
_FASTER = 10.0  # scales and zero points move by shares of themselves, weights by their numbers


class Blockwise(Matching, Step, kind="heal/blockwise"):
    """Block by block, each fed by the blocks already healed, against the original's own stream.

    Float weights are trained, zeros of a pruned linear stay zeros, and of a quantized linear
    its scales and zero points. One block at a time is in memory with its gradients, so this
    needs little more than the model itself (as in EfficientQAT, arXiv 2407.11062, 3.2).
    """

    version = 2
    needs = frozenset()
    tasks = TASKS
    by_block = True
    promises = frozenset()  # a block that training did not help is left as it was

    teacher: ModelRef = Field(
        "original", description="whose blocks to follow: a model with as many blocks"
    )
    data: DataRef = Field("train", description="the dataset to train on; it needs no labels")
    sequences: int = Field(64, ge=2, description="sequences to train on, one in eight held out")
    batch: int = Field(4, ge=1, description="sequences at a time")
    epochs: int = Field(4, ge=1, description="passes over the sequences, at each block")
    learning_rate: float = Field(1e-4, gt=0, description="of weights; scales move ten times so far")
    scope: Scope = Field(Scope.everything(), description="the modules of blocks to train")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Walk the blocks beside the teacher's."""
        teacher = ctx.model(self.teacher)
        own, theirs = _shape(model), _shape(teacher)
        if own != theirs:
            raise UserError(
                f"the teacher has {theirs} and the model {own}, so they cannot be matched one by "
                "one. Heal the whole with distill/logits"
            )
        chosen = model.select(self.scope)

        def visit(view: BlockView) -> Matched:
            start = f"{model.blocks_name}.{view.index}."
            names = [name for name in chosen if name.startswith(start)]
            with freed(model.module, names, matrices=True) as free:
                rates = dict.fromkeys(free.weights, self.learning_rate)
                rates |= dict.fromkeys(free.scales, self.learning_rate * _FASTER)
                return match(view, rates, steps, ctx.seed, _OPTIMIZER)

        batches = calibration_to_match(self, model, ctx)
        steps = self.epochs * len(taught_and_held(len(batches))[0])
        found = walk(model, batches, Scope.linears(), ctx, visit, "blockwise", teacher)
        tell_matched(ctx, found)
        return model


def _shape(model: Model) -> str:
    return f"{len(model.blocks)} blocks of {model.sizes.hidden} channels"
