"""W8A8 after moving what is hard to round from the inputs into the weights (SmoothQuant)."""

from __future__ import annotations

from pydantic import Field

from attar.calibrate.folding import Folds, fold_all
from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.view import BlockView
from attar.calibrate.walk import walk
from attar.core.context import Context
from attar.core.grid import Grid, IntegerGridName
from attar.core.scope import Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, QUANTIZED
from attar.layers import DynamicLinear
from attar.models.model import Model
from attar.ops.activations import Peaks, smoothing
from attar.techniques.quantize._solving import solve_group


class SmoothQuant(Calibrated, Step, kind="quantize/smoothquant"):
    """SmoothQuant (arXiv 2211.10438), then weights by GPTQ and tokens at 8 bits each.

    Scales are folded into norms and linears of the scope, where a block computes the same
    afterwards; linears without such a source are rounded as they are.
    """

    version = 2
    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT})
    adds = frozenset({QUANTIZED})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})
    walked = True

    grid: IntegerGridName = Field("int8-channel", description="the numbers a weight may take")
    migration: float = Field(
        0.5, ge=0, le=1, description="how much is moved: 0, nothing of the inputs; 1, all"
    )
    scope: Scope = Field(
        Scope(patterns=("linears", "norm")),
        description="the linears to quantize, and norms that may take their scales",
    )

    def apply(self, model: Model, ctx: Context) -> Model:
        """Walk the blocks; scale and round the linears of each."""
        grid = Grid.parse(self.grid)
        folds = Folds(model.select(self.scope), model.facts())

        def visit(view: BlockView) -> None:
            groups = [(names, peaks.found) for names, peaks in view.groups(Peaks)]
            of = {name: found for names, found in groups for name in names}
            fold_all(
                view,
                [names for names, _ in groups],
                folds,
                lambda fold, weight: fold.tied(
                    smoothing(of[fold.linears[0]], weight, self.migration)
                ),
            )
            for names, gram in view.groups():
                solve_group(view, names, gram.mean, grid, cls=DynamicLinear)

        batches = calibration(self, model, ctx)
        walk(model, batches, self.scope, ctx, visit, "SmoothQuant")
        return model
