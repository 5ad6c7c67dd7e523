"""Round each weight up or down as its block's outputs want it, learned by signed gradients."""

from __future__ import annotations

from contextlib import ExitStack

from pydantic import Field
from torch import Tensor, nn

from attar.calibrate.matching import (
    Matched,
    Matching,
    calibration_to_match,
    match,
    tell_matched,
)
from attar.calibrate.view import BlockView
from attar.calibrate.walk import walk
from attar.core.context import Context
from attar.core.grid import Grid, GridName
from attar.core.scope import Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, QUANTIZED
from attar.layers import QuantizedLinear
from attar.models.masks import is_masked
from attar.models.model import Model, weight_of
from attar.ops.gptq import wanted_levels
from attar.ops.gram import damped
from attar.ops.signround import SignDescent
from attar.techniques.quantize._solving import Embeddings, solve_group
from attar.train.scoped import frozen

_DAMPING = 1.0  # of the mean energy
_STEPS, _STEPS_OF_OTHERS = 50, 200  # by default, of a model for causal-lm and of any other


class AutoRound(Matching, Embeddings, Step, kind="quantize/autoround"):
    """SignRound (Cheng et al. 2023, arXiv 2309.05516), block by block, started where GPTQ ends.

    What every code is rounded from, and its group's scale, move by the sign of the gradient of
    the block's error, against what the block made of the original's hidden states. The paper
    starts at the nearest codes; those of GPTQ (arXiv 2210.17323) are nearer to the end. Its gram
    is damped by its whole mean energy here, so that they stay near the weights: the steps fit the
    same tokens once more (docs/log.md).
    """

    version = 3
    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT})
    adds = frozenset({QUANTIZED})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})
    walked = True

    grid: GridName = Field("int4-g64", description="the numbers a weight may take")
    steps: int | None = Field(
        None,
        ge=1,
        description="signed steps at each block; by default 50 where a model is for causal-lm, and "
        "200 where it is not, which gains by more",
    )
    sequences: int = Field(64, ge=2, description="sequences to learn on, one in eight held out")
    batch: int = Field(4, ge=1, description="sequences at a time")
    scope: Scope = Field(Scope.linears(), description="the linears to quantize")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Walk the blocks beside their own float outputs; learn the rounding of each."""
        grid = Grid.parse(self.grid)
        steps = self.steps or (_STEPS if model.task == "causal-lm" else _STEPS_OF_OTHERS)

        def visit(view: BlockView) -> Matched:
            wanted: dict[str, Tensor] = {}
            for names, gram in view.groups():
                weights = {name: weight_of(view.linears[name]).detach() for name in names}
                mean = damped(gram.mean, _DAMPING)
                solve_group(view, names, mean, grid, 1)
                for name, weight in weights.items():
                    codes = model.module.get_submodule(name).unpacked()
                    wanted[name] = wanted_levels(weight, codes, mean, grid)
            view.outputs = None  # those of GPTQ's codes
            with frozen(model.module), ExitStack() as stack:
                rates: dict[nn.Parameter, float] = {}
                for name, exact in wanted.items():
                    linear = model.module.get_submodule(name)
                    stack.callback(linear.settle)
                    rates |= _rates(linear, exact, steps)
                return match(view, rates, steps, ctx.seed, SignDescent)

        batches = calibration_to_match(self, model, ctx)
        tell_matched(ctx, walk(model, batches, self.scope, ctx, visit, "AutoRound", model))
        self.round_embeddings(model)
        return model


def _rates(linear: QuantizedLinear, wanted: Tensor, steps: int) -> dict[nn.Parameter, float]:
    """What is trained of a linear, and how far each of so many steps may go."""
    masked = is_masked(linear)
    (nudge,) = linear.free_codes(wanted, held=weight_of(linear) == 0 if masked else None)
    # minima too, but no zero points: levels move by themselves
    scales = linear.free() if linear.grid.minimum else linear.free_scales()
    return {nudge: 2.0 / steps} | dict.fromkeys(scales, 0.2 / steps)
