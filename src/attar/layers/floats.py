"""Weights on grids that are rebuilt once and kept, where memory allows it."""

from __future__ import annotations

import torch
from torch import nn

from attar.layers.quantized import Quantized, QuantizedLinear
from attar.layers.tied import TiedHead


def multiplied(model: nn.Module) -> list[Quantized]:
    """Linears on grids, and tables that heads are tied to: what each pass rebuilds whole.

    Of other tables only the rows looked up are.
    """
    tables = [m.__dict__["table"] for m in model.modules() if isinstance(m, TiedHead)]
    linears = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    return list(dict.fromkeys([*linears, *tables]))


@torch.no_grad()
def keep_floats(model: nn.Module, dtype: torch.dtype) -> None:
    """Rebuild them once, in the dtype that is computed in, and keep them beside their codes."""
    for table in multiplied(model):
        table.keep_floats(dtype)


def drop_floats(model: nn.Module) -> None:
    """Rebuild them in every pass again."""
    for table in multiplied(model):
        table.floats = None
