"""Rounding the linears of a model: to nearest one by one, or together by GPTQ's solver."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from attar.calibrate.install import install_linear, quantize_embeddings
from attar.calibrate.view import BlockView
from attar.core.grid import Grid, GridName
from attar.layers import QuantizedLinear
from attar.models.masks import is_masked
from attar.models.model import Model, weight_of
from attar.ops.gptq import error_of, nearest, solve


class Embeddings(BaseModel):
    """What becomes of the embedding table, mixed into a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embeddings: GridName | None = Field(
        None, description="the grid of the embedding table, and of a head that is tied to it"
    )

    def round_embeddings(self, model: Model) -> None:
        """Round the table, where a grid is given for it."""
        if self.embeddings is not None:
            quantize_embeddings(model, Grid.parse(self.embeddings))


def power_for(grid: Grid) -> int:
    """The power of errors that rounding to nearest makes least.

    Squares cut off more of what stands out, which costs decoders a tenth (docs/log.md).
    """
    return 3 if grid.bits in (3, 4) and not grid.minimum else 2


def round_linear(
    model: Model,
    name: str,
    grid: Grid,
    cls: type[QuantizedLinear] = QuantizedLinear,
    power: int = 2,
) -> None:
    """Round a linear to nearest, on scales that make each group's error, to a power, smallest."""
    weight = weight_of(model.module.get_submodule(name))
    install_linear(model, name, nearest(weight, grid, power=power), grid, cls)


def solve_group(
    view: BlockView,
    names: list[str],
    gram: Tensor,
    grid: Grid,
    sweeps: int = 1,
    cls: type[QuantizedLinear] = QuantizedLinear,
) -> list[float]:
    """Round these linears as one tall matrix; their relative errors.

    gram: [width, width], of the inputs that they share. Zeros of a pruned linear stay zeros.
    """
    weights = [weight_of(view.linears[name]) for name in names]
    keep = None
    if any(is_masked(view.linears[name]) for name in names):
        keep = torch.cat([_kept(view.linears[name]) for name in names])
    tall = solve(torch.cat(weights), gram, grid, sweeps, keep)
    errors: list[float] = []
    start = 0
    for name, weight in zip(names, weights, strict=True):
        codes = tall.rows(slice(start, start + len(weight)))
        errors.append(error_of(weight, codes, gram, grid))
        install_linear(view.model, name, codes, grid, cls)
        start += len(weight)
    return errors


def _kept(linear: nn.Module) -> Tensor:
    """Where a linear's weights may be other than zero."""
    weight = weight_of(linear).detach()
    return weight != 0 if is_masked(linear) else torch.ones_like(weight, dtype=torch.bool)
