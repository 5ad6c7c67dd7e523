"""What comes before writing: refusals, rounding that was allowed, factors that are merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from attar.errors import ExportError, Problem
from attar.export._refused import adapter
from attar.export.target import Quantized, Target, codes_of, quantized
from attar.layers import LowRank, QuantizedEmbedding, QuantizedLinear, swap
from attar.models import Model
from attar.models.adapters import is_adapted
from attar.ops.rounding import dequantize, fit_scales, quantize

_SHOWN = 3


def refuse(model: Model, target: Target, allow_rounding: bool, adapted: Sequence[str] = ()) -> None:
    """Raise ExportError, with everything that is wrong, before any weight is loaded.

    `model` is the skeleton with its tokenizer; its files may say that linears are `adapted`.
    """
    if model.family.media:
        raise ExportError(
            [
                Problem(
                    "models that take in images or sounds are not exported yet. The artifact's "
                    "folder loads with attar.load, and with transformers as it is"
                )
            ]
        )
    found = [Problem(text) for text in target.problems(model)]
    if adapted:
        found.append(Problem(adapter(adapted)))
    refused = [item for item in quantized(model) if not target.holds(item, model)]
    if allow_rounding:
        refused = [item for item in refused if target.nearest(item) is None]
    found += _refusals(refused, target, "is not held")
    if found:
        raise ExportError(found)


def refuse_codes(model: Model, target: Target, allow_rounding: bool) -> list[Quantized]:
    """What must be rounded; raises ExportError where it may not be. The weights are loaded."""
    adapted = [name for name, module in model.module.named_modules() if is_adapted(module)]
    if adapted:
        raise ExportError([Problem(adapter(adapted))])
    found = [
        item
        for item in quantized(model)
        if not target.holds(item, model) or not target.fits(item, codes_of(model, item.name))
    ]
    if found and not allow_rounding:
        raise ExportError(_refusals(found, target, "is not held with the scales that it has"))
    return found


def _refusals(items: list[Quantized], target: Target, what: str) -> list[Problem]:
    """One line for each grid, with the grids that are held."""
    by_grid: dict[str, list[str]] = {}
    for item in items:
        by_grid.setdefault(item.told, []).append(item.name)
    held = "; ".join(target.grids)
    found: list[Problem] = []
    for grid, names in by_grid.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        found.append(
            Problem(
                f"the grid {grid} of {', '.join(names[:_SHOWN])}{more} {what} by "
                f"{target.name} without loss. It holds {held}. Quantize to one of these, or give "
                "--allow-rounding to round a second time"
            )
        )
    return found


def round_again(model: Model, items: list[Quantized], target: Target) -> dict[str, Any]:
    """Put these on the nearest grids that the target holds; what that cost, layer by layer."""
    found: dict[str, Any] = {}
    for item in items:
        grid = target.nearest(item)
        if grid is None:
            raise ExportError(_refusals([item], target, "is not held"))
        old: Any = model.module.get_submodule(item.name)
        weight = old.weight
        codes = quantize(weight, fit_scales(weight, grid, positive=target.positive), grid)
        moved = dequantize(codes, grid) - weight
        if isinstance(old, QuantizedEmbedding):
            new = QuantizedEmbedding(item.rows, item.width, grid, old.dtype, old.factor)
        else:
            new = QuantizedLinear(item.rows, item.width, grid, old.bias)
        _replace(model, item.name, old, new.fill(codes))
        error = float(moved.square().mean().sqrt() / weight.square().mean().sqrt())
        found[item.name] = {"from": item.told, "to": grid.name, "relative_error": error}
    return found


def _replace(model: Model, name: str, old: nn.Module, new: nn.Module) -> None:
    """Put the new one there, and under every head that is tied to the old."""
    swap(model.module, name, new)
    for module in model.module.modules():
        if module.__dict__.get("table") is old:
            module.__dict__["table"] = new


def merge_factors(module: nn.Module) -> list[str]:
    """Make one linear of every two thin ones; the names of those that were merged."""
    names = [name for name, child in module.named_modules() if isinstance(child, LowRank)]
    for name in names:
        old: Any = module.get_submodule(name)
        dtype = next(module.parameters()).dtype
        new = nn.Linear(old.in_features, old.out_features, old.bias is not None, device="meta")
        with torch.no_grad():
            new.weight = nn.Parameter(old.weight.to(dtype))
        if old.bias is not None:
            new.bias = old.bias
        swap(module, name, new)
    return names
