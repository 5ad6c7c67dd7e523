"""Round every weight to the nearest point of a grid; no data needed."""

from __future__ import annotations

from pydantic import Field

from attar.calibrate.linears import each_linear
from attar.core.context import Context
from attar.core.grid import Grid, GridName
from attar.core.scope import Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, QUANTIZED
from attar.models.model import Model
from attar.techniques.quantize._solving import Embeddings, power_for, round_linear


class Rtn(Embeddings, Step, kind="quantize/rtn"):
    """Round to nearest, on scales that make the error of each group smallest.

    That is the sum of its cubes at 3 and 4 bits, of its squares at others and on grids with a
    minimum, and at `mxfp4`, whose scales are powers of two, of its fourth powers.
    """

    version = 3
    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT})
    adds = frozenset({QUANTIZED})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})

    grid: GridName = Field("int8-channel", description="the numbers a weight may take")
    scope: Scope = Field(Scope.linears(), description="the linears to quantize")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Round one linear at a time."""
        grid = Grid.parse(self.grid)
        power = power_for(grid)
        each_linear(
            model, self.scope, ctx, lambda name: round_linear(model, name, grid, power=power)
        )
        self.round_embeddings(model)
        return model
