"""Putting codes and factors that were computed into a model."""

from __future__ import annotations

from typing import TypeVar

from attar.core.grid import Grid
from attar.errors import UserError
from attar.layers import (
    LowRank,
    LowRankResidual,
    QuantizedEmbedding,
    QuantizedLinear,
    TiedHead,
    swap,
)
from attar.models.masks import is_masked, mark
from attar.models.model import Model, weight_of
from attar.models.structure import untie
from attar.ops.factor import Factors
from attar.ops.residual import Parts
from attar.ops.rounding import Codes, fit_scales, quantize

L = TypeVar("L", bound=QuantizedLinear)


def install_linear(
    model: Model, name: str, codes: Codes, grid: Grid, cls: type[L] = QuantizedLinear
) -> L:
    """Put a quantized linear with these codes where the linear called `name` is.

    Raises UserError where the zeros of a pruned linear would not stay zeros.
    """
    old = model.module.get_submodule(name)
    if is_masked(old) and grid.minimum:
        whole = grid.model_copy(update={"offset": "zero"})
        raise UserError(
            f"{name} was pruned, and its zeros are no numbers of the grid {grid.name}, which adds "
            f"a minimum to all. Take {whole.name}, which holds zero"
        )
    rows, width = codes.codes.shape
    new = cls(rows, width, grid, old.bias).fill(codes)
    if is_masked(old):
        mark(new)
    swap(model.module, name, new)
    return new


def quantize_embeddings(model: Model, grid: Grid) -> None:
    """Round the embedding table; a head that is tied to it then multiplies with its codes."""
    facts = {fact.role: fact.name for fact in model.facts() if fact.role in ("embedding", "head")}
    old = model.module.get_input_embeddings()
    head = model.module.get_output_embeddings()
    weight = old.weight.detach()
    factor = float(getattr(old, "scalar_embed_scale", 1.0))
    rows, width = weight.shape
    table = QuantizedEmbedding(rows, width, grid, weight.dtype, factor)
    table.fill(quantize(weight, fit_scales(weight, grid), grid))
    swap(model.module, facts["embedding"], table)
    if head is not None and head.weight is old.weight:
        swap(model.module, facts["head"], TiedHead(table, facts["embedding"], head.bias))
    untie(model.module)


def install_factors(model: Model, name: str, factors: Factors) -> None:
    """Put two thin linears where the linear called `name` is."""
    old = model.module.get_submodule(name)
    (rows, rank), width = factors.up.shape, factors.down.shape[1]
    dtype = weight_of(old).dtype
    new = LowRank(rows, width, rank, old.bias is not None)
    # In a row, as files keep them: on others a product may round otherwise
    up, down = factors.up.to(dtype).contiguous(), factors.down.to(dtype).contiguous()
    swap(model.module, name, new.fill(up, down, old.bias))


def install_parts(model: Model, name: str, parts: Parts, thin: Grid, coarse: Grid) -> LowRank:
    """Put two thin linears and the one that they leave where the linear called `name` is."""
    old = model.module.get_submodule(name)
    (rows, rank), width = parts.up.codes.shape, parts.down.codes.shape[1]
    new = LowRankResidual(rows, width, rank, old.bias is not None)
    new.down = QuantizedLinear(rank, width, thin).fill(parts.down)  # type: ignore[assignment]
    new.up = QuantizedLinear(rows, rank, thin, old.bias).fill(parts.up)  # type: ignore[assignment]
    new.rest = QuantizedLinear(rows, width, coarse).fill(parts.rest)
    swap(model.module, name, new)
    return new
