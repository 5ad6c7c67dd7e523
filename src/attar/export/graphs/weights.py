"""What a graph's linears and tables hold, as arrays: codes with their scales, or floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attar.layers import (
    DynamicLinear,
    QuantizedEmbedding,
    QuantizedLinear,
    RoundedLinear,
    StaticLinear,
    TiedHead,
)
from attar.models import Model
from attar.models.model import weight_of
from attar.ops.activations import InputGrid

Floats = NDArray[np.float32]
Inputs = Literal["float", "dynamic", "static"]


@dataclass(frozen=True)
class Coded:
    """A matrix on a grid: a linear's, or a table of embeddings.

    codes: int16 [rows, width], signed where `signed`, from 0 elsewhere; scales: [rows, groups];
    zeros: int16 [rows, groups] or None. `bits` is what a container needs for a code: 4 or 8.
    `inputs` says what it multiplies with, static inputs on the grid `given`.
    """

    name: str
    codes: NDArray[np.int16]
    scales: Floats
    zeros: NDArray[np.int16] | None
    group: int
    bits: int
    signed: bool
    bias: Floats | None = None
    inputs: Inputs = "float"
    given: InputGrid | None = None

    @property
    def rows(self) -> int:
        """Outputs of a linear."""
        return self.codes.shape[0]

    @property
    def width(self) -> int:
        """Inputs of a linear."""
        return self.codes.shape[1]

    @property
    def per_row(self) -> bool:
        """Whether each row has one scale."""
        return self.scales.shape[1] == 1

    @property
    def integers(self) -> bool:
        """Whether it can multiply whole numbers: static inputs, and one scale a row."""
        return self.inputs == "static" and self.per_row and self.signed

    def layout(self) -> tuple[Any, ...]:
        """What must be equal of two linears that are to be one."""
        grid = self.group, self.bits, self.signed, self.zeros is None
        return *grid, self.inputs, self.given


@dataclass(frozen=True)
class Dense:
    """A matrix of floats, [rows, width]. `tied`: it is a table that something else uses too."""

    name: str
    weight: Floats
    bias: Floats | None = None
    tied: bool = False

    @property
    def rows(self) -> int:
        """Outputs of a linear."""
        return self.weight.shape[0]


def weights_of(model: Model, name: str) -> Coded | Dense:
    """The weights of a linear or table; a head that is tied to a table has that table's."""
    module: Any = model.module.get_submodule(name)
    bias = getattr(module, "bias", None)
    bias = None if bias is None else floats(bias)
    if isinstance(module, TiedHead):
        return _coded(module.table_name, module.__dict__["table"], bias)
    if isinstance(module, QuantizedLinear | QuantizedEmbedding):
        return _coded(name, module, bias)
    tied = _tied(model, module)
    return Dense(name if tied is None else tied, floats(weight_of(module)), bias, tied is not None)


def outputs_of(model: Model, name: str) -> InputGrid | None:
    """The grid that a linear's outputs are rounded to."""
    module: Any = model.module.get_submodule(name)
    return module.output_grid if isinstance(module, RoundedLinear) else None


def floats(tensor: Any) -> Floats:
    """A tensor as a float32 array."""
    return np.ascontiguousarray(tensor.detach().float().numpy())


def _coded(name: str, module: Any, bias: Floats | None) -> Coded:
    found, grid = module.unpacked(), module.grid
    inputs: dict[str, Any] = {}
    if isinstance(module, DynamicLinear):
        inputs = {"inputs": "dynamic"}
    elif isinstance(module, StaticLinear):
        inputs = {"inputs": "static", "given": module.input_grid}
    return Coded(
        name,
        found.codes.numpy(),
        floats(found.scales),
        None if found.zeros is None else found.zeros.numpy().astype(np.int16),
        module.group,
        4 if grid.bits < 8 else 8,
        grid.low < 0,
        bias,
        **inputs,
    )


def _tied(model: Model, module: Any) -> str | None:
    """The name of the embeddings, where this is them or the head that shares their weight."""
    table, head = model.module.get_input_embeddings(), model.module.get_output_embeddings()
    if module not in (table, head) or getattr(head, "weight", None) is not table.weight:
        return None
    return next(name for name, found in model.module.named_modules() if found is table)
