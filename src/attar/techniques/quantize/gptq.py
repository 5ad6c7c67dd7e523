"""Round column by column, moving each error onto the columns still to come (GPTQ)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.calibrate.install import install_linear, quantize_embeddings
from attar.calibrate.rows import calibration
from attar.calibrate.walk import BlockView, tell_errors, walk
from attar.core.context import Context
from attar.core.grid import Grid, GridName
from attar.core.scope import Scope
from attar.core.step import DataRef, Step
from attar.core.traits import FLOAT, QUANTIZED
from attar.models.masks import is_masked
from attar.models.model import Model, weight_of
from attar.ops.gptq import error_of, solve
from attar.ops.rounding import Codes


class Gptq(Step, kind="quantize/gptq"):
    """GPTQ (arXiv 2210.17323), block by block, each fed by the blocks already rounded.

    The zeros of a linear that was pruned stay zeros.
    """

    version = 2
    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT})
    adds = frozenset({QUANTIZED})
    promises = frozenset({"changed", "smaller"})

    grid: GridName = Field("int4-g64", description="the numbers a weight may take")
    embeddings: GridName | None = Field(
        None, description="the grid of the embedding table, and of a head that is tied to it"
    )
    data: DataRef = Field("train", description="the dataset to calibrate on")
    sequences: int = Field(32, ge=1, description="calibration sequences")
    length: int = Field(512, ge=8, description="tokens in a sequence")
    batch: int = Field(8, ge=1, description="sequences at a time")
    sweeps: int = Field(
        1, ge=0, description="times to refit the scales and move each code to its best after that"
    )
    scope: Scope = Field(Scope.linears(), description="the linears to quantize")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Walk the blocks; round the linears of each."""
        grid = Grid.parse(self.grid)
        batches = calibration(self, model, ctx)

        def visit(view: BlockView) -> list[float]:
            return [
                error
                for names, gram in view.groups()
                for error in self._solve(model, view, names, gram.mean, grid)
            ]

        tell_errors(ctx, walk(model, batches, self.scope, ctx, visit, "GPTQ"))
        if self.embeddings is not None:
            quantize_embeddings(model, Grid.parse(self.embeddings))
        return model

    def _solve(
        self, model: Model, view: BlockView, names: list[str], gram: Tensor, grid: Grid
    ) -> list[float]:
        """Round linears that share their inputs as one tall matrix; their relative errors."""
        weights = [weight_of(view.linears[name]) for name in names]
        keep = None
        if any(is_masked(view.linears[name]) for name in names):
            keep = torch.cat([_kept(view.linears[name]) for name in names])
        tall = solve(torch.cat(weights), gram, grid, self.sweeps, keep)
        errors: list[float] = []
        start = 0
        for name, weight in zip(names, weights, strict=True):
            rows = slice(start, start + len(weight))
            codes = Codes(tall.codes[rows], tall.scales[rows], _rows(tall.zeros, rows))
            errors.append(error_of(weight, codes, gram, grid.group_for(weight.shape[1])))
            install_linear(model, name, codes, grid)
            start += len(weight)
        return errors


def _kept(linear: nn.Module) -> Tensor:
    """Where a linear's weights may be other than zero."""
    weight = weight_of(linear).detach()
    return weight != 0 if is_masked(linear) else torch.ones_like(weight, dtype=torch.bool)


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]
