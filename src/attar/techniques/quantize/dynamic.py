"""Weights at 8 bits, and what they are multiplied with at 8 bits on scales found as it runs."""

from __future__ import annotations

from pydantic import Field

from attar.calibrate.linears import each_linear
from attar.core.context import Context
from attar.core.grid import Grid, IntegerGridName
from attar.core.scope import Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, QUANTIZED
from attar.layers import DynamicLinear
from attar.models.model import Model
from attar.techniques.quantize._solving import round_linear


class Dynamic(Step, kind="quantize/dynamic"):
    """W8A8 with a grid for every token (as in ZeroQuant, arXiv 2206.01861); no data needed.

    A token's grid spans its own inputs, which seldom lie evenly around zero: not those of a layer
    that an activation function stands before.
    """

    version = 2
    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT})
    adds = frozenset({QUANTIZED})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})

    grid: IntegerGridName = Field("int8-channel", description="the numbers a weight may take")
    scope: Scope = Field(Scope.linears(), description="the linears to quantize")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Round one linear at a time."""
        grid = Grid.parse(self.grid)
        each_linear(
            model, self.scope, ctx, lambda name: round_linear(model, name, grid, DynamicLinear)
        )
        return model
