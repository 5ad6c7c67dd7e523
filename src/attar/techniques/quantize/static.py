"""Weights at 8 bits, and what they are multiplied with at 8 bits on ranges found beforehand."""

from __future__ import annotations

from pydantic import Field

from attar.calibrate.install import install_linear
from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.view import BlockView
from attar.calibrate.walk import walk
from attar.core.context import Context
from attar.core.grid import Grid, IntegerGridName
from attar.core.scope import Scope
from attar.core.step import Step
from attar.core.traits import FLOAT, QUANTIZED
from attar.layers import StaticLinear
from attar.models.model import Model, weight_of
from attar.ops.activations import Range
from attar.ops.gptq import nearest


class Static(Calibrated, Step, kind="quantize/static"):
    """W8A8 with one grid for all inputs of a linear (Jacob et al. 2018, arXiv 1712.05877).

    The grid is the one of least squared error on the inputs seen, block by block, each fed by
    the blocks already rounded.
    """

    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT})
    adds = frozenset({QUANTIZED})
    promises = frozenset({"changed", "smaller"})

    grid: IntegerGridName = Field("int8-channel", description="the numbers a weight may take")
    sequences: int = Field(128, ge=1, description="calibration sequences")
    length: int = Field(128, ge=8, description="tokens in a sequence")
    scope: Scope = Field(Scope.linears(), description="the linears to quantize")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Walk the blocks; round the linears of each once their inputs are known."""
        grid = Grid.parse(self.grid)

        def visit(view: BlockView) -> None:
            for names, inputs in view.groups(Range):
                found = inputs.fit()
                for name in names:
                    codes = nearest(weight_of(view.linears[name]), grid)
                    install_linear(model, name, codes, grid, StaticLinear).on(found)

        walk(model, calibration(self, model, ctx), self.scope, ctx, visit, "static")
        return model
