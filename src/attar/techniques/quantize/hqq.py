"""Round to nearest on minima that let a few errors be large and keep the others small (HQQ)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from attar.calibrate.install import install_linear
from attar.calibrate.linears import each_linear
from attar.core.context import Context
from attar.core.grid import Grid, GridName
from attar.core.scope import ModuleFact, Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, QUANTIZED
from attar.models.model import Model, weight_of
from attar.ops.hqq import solve
from attar.techniques.quantize._solving import Embeddings


class Hqq(Embeddings, Step, kind="quantize/hqq"):
    """Half-quadratic quantization (Badri and Shaji 2023); no data needed.

    Scales are those of least squares. An integer zero point leaves nothing to move, so the grid
    is one with a minimum.
    """

    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT})
    adds = frozenset({QUANTIZED})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})

    grid: GridName = Field("int4-g64-min", description="the numbers a weight may take")
    norm: float = Field(
        0.7, gt=0, le=1, description="power of each error in the sum; below 1, a few may be large"
    )
    iterations: int = Field(20, ge=1, description="times to move the minima")
    scope: Scope = Field(Scope.linears(), description="the linears to quantize")

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether the grid has minima to move."""
        grid = Grid.parse(self.grid)
        if not grid.minimum:
            better = f"int{min(grid.bits, 4)}-g64-min"
            yield (
                f"grid: {self.grid} has no minimum, which is what is moved. Take one that has, "
                f"{better} say, or round to {self.grid} with quantize/rtn"
            )

    def apply(self, model: Model, ctx: Context) -> Model:
        """Round one linear at a time."""
        grid = Grid.parse(self.grid)

        def change(name: str) -> None:
            weight = weight_of(model.module.get_submodule(name))
            codes = solve(weight, grid, self.norm, self.iterations)
            install_linear(model, name, codes, grid)

        each_linear(model, self.scope, ctx, change)
        self.round_embeddings(model)
        return model
