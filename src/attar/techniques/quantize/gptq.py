"""Round column by column, moving each error onto the columns still to come (GPTQ)."""

from __future__ import annotations

from pydantic import Field

from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.view import BlockView
from attar.calibrate.walk import tell_errors, walk
from attar.core.context import Context
from attar.core.grid import Grid, GridName
from attar.core.scope import Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, QUANTIZED
from attar.models.model import Model
from attar.techniques.quantize._solving import Embeddings, solve_group


class Gptq(Calibrated, Embeddings, Step, kind="quantize/gptq"):
    """GPTQ (arXiv 2210.17323), block by block, each fed by the blocks already rounded.

    Columns go by falling energy of their inputs, on scales that are fixed before the first. The
    gram's diagonal is damped by 1 % of its mean, or by as much more as it takes to be definite;
    where attention ends in a model that answers for whole texts, by half of it.
    The zeros of a linear that was pruned stay zeros.
    """

    version = 4
    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT})
    adds = frozenset({QUANTIZED})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})
    walked = True

    grid: GridName = Field("int4-g64", description="the numbers a weight may take")
    sweeps: int = Field(
        1, ge=0, description="times to refit the scales and move each code to its best after that"
    )
    scope: Scope = Field(Scope.linears(), description="the linears to quantize")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Walk the blocks; round the linears of each."""
        grid = Grid.parse(self.grid)
        batches = calibration(self, model, ctx)

        def visit(view: BlockView) -> list[float]:
            errors: list[float] = []
            for names, gram in view.groups():
                mean = view.steady(names, gram.mean)
                errors += solve_group(view, names, mean, grid, self.sweeps)
            return errors

        tell_errors(ctx, walk(model, batches, self.scope, ctx, visit, "GPTQ"))
        self.round_embeddings(model)
        return model
