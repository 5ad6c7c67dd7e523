"""Round to nearest, after making channels with large inputs finer (AWQ)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from attar.calibrate.folding import Folds, fold_all
from attar.calibrate.install import install_linear
from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.view import BlockView
from attar.calibrate.walk import tell_errors, walk
from attar.core.context import Context
from attar.core.grid import Grid, GridName
from attar.core.scope import Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, QUANTIZED
from attar.models.model import Model, weight_of
from attar.ops.awq import search
from attar.ops.gptq import error_of, nearest
from attar.techniques.quantize._solving import Embeddings


class Awq(Calibrated, Embeddings, Step, kind="quantize/awq"):
    """AWQ (arXiv 2306.00978): scales of input channels, folded into what comes before.

    They are folded into norms and linears of the scope, where a block computes the same
    afterwards; linears without such a source are rounded as they are.
    """

    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT})
    adds = frozenset({QUANTIZED})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})
    walked = True

    grid: GridName = Field("int4-g64", description="the numbers a weight may take")
    scope: Scope = Field(
        Scope(patterns=("linears", "norm")),
        description="the linears to quantize, and norms that may take their scales",
    )

    def apply(self, model: Model, ctx: Context) -> Model:
        """Walk the blocks; scale and round the linears of each."""
        grid = Grid.parse(self.grid)
        batches = calibration(self, model, ctx)
        folds = Folds(model.select(self.scope), model.facts())

        def visit(view: BlockView) -> list[float]:
            grams = [(names, gram.mean) for names, gram in view.groups()]
            of = {name: gram for names, gram in grams for name in names}
            scaled = fold_all(
                view,
                [names for names, _ in grams],
                folds,
                lambda fold, weight: search(weight, of[fold.linears[0]], grid, fold.tied),
            )
            view.outputs = None  # those of the float weights
            return [_round(model, name, of[name], scaled.get(name), grid) for name in of]

        tell_errors(ctx, walk(model, batches, self.scope, ctx, visit, "AWQ"))
        self.round_embeddings(model)
        return model


def _round(model: Model, name: str, gram: Tensor, scales: Tensor | None, grid: Grid) -> float:
    """Round a linear whose inputs were divided by `scales`; its relative error."""
    if scales is not None:
        gram = gram / scales / scales[:, None]
    weight = weight_of(model.module.get_submodule(name))
    codes = nearest(weight, grid, gram.diagonal())
    install_linear(model, name, codes, grid)
    return error_of(weight, codes, gram, grid)
