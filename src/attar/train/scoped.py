"""Training a part of a model: which parameters want a gradient, for as long as that lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from attar.core.scope import Scope
from attar.errors import UserError
from attar.layers import QuantizedEmbedding, QuantizedLinear
from attar.models.masks import hold_zeros, is_masked
from attar.models.model import Model


@contextmanager
def trained(model: Model, scope: Scope) -> Iterator[None]:
    """Let the float parameters in scope be trained, and no others; put it back at the end.

    With a scope of everything, that means also the few parameters that belong to no linear,
    table or norm. A tensor that two modules share is trained where one of them is in scope.
    The zeros of masked linears stay zeros.
    """
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    names = set(parameters)
    if scope != Scope.everything():
        chosen = set(model.select(scope))
        names = {name for name in parameters if name.rpartition(".")[0] in chosen}
    names = {name for name in names if parameters[name].is_floating_point()}
    if not names:
        raise UserError(f"the scope {list(scope.patterns)} holds no weight that can be trained")
    with frozen(model.module), ExitStack() as stack:
        for name in names:
            parameters[name].requires_grad_(True)
            module, _, leaf = name.rpartition(".")
            if leaf == "weight" and is_masked(model.module.get_submodule(module)):
                stack.callback(hold_zeros(parameters[name]).remove)
        yield


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let no parameter want a gradient but those that are told to meanwhile; then as before."""
    before = {parameter: parameter.requires_grad for parameter in module.parameters()}
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)


@dataclass(frozen=True)
class Freed:
    """Parameters that may be trained: scales and zero points, and float weights."""

    scales: list[nn.Parameter]
    weights: list[nn.Parameter]


@contextmanager
def freed(module: nn.Module, names: Iterable[str], matrices: bool = False) -> Iterator[Freed]:
    """Let scales, zero points, norms and biases of the modules called `names` be trained.

    With `matrices` their float weights too, but for the zeros of masked linears. Nothing else
    wants a gradient meanwhile, and at the end the scales are on their grid again.
    """
    parts = [module.get_submodule(name) for name in names]
    quantized = [part for part in parts if isinstance(part, QuantizedLinear)]
    own = (p for part in parts for p in part.parameters(recurse=False) if matrices or p.dim() == 1)
    weights = list(dict.fromkeys(own))  # two modules may share one
    scales: list[nn.Parameter] = []
    with frozen(module), ExitStack() as stack:
        for parameter in weights:
            parameter.requires_grad_(True)
        for part in quantized:
            stack.callback(part.settle)
            # a moved zero point would make other numbers of the zeros of a pruned linear
            scales += part.free_scales() if is_masked(part) else part.free()
        for part in parts:
            if matrices and is_masked(part) and part not in quantized:
                stack.callback(hold_zeros(cast("nn.Parameter", part.weight)).remove)
        yield Freed(scales, weights)


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Draw no dropout anywhere in `module`, as long as this lasts."""
    changed = [
        (part, name, value)
        for part in module.modules()
        for name, value in vars(part).items()
        if _drops(part, name, value)
    ]
    for part, name, _ in changed:
        setattr(part, name, 0.0)
    try:
        yield
    finally:
        for part, name, value in changed:
            setattr(part, name, value)


def _drops(module: nn.Module, name: str, value: object) -> bool:
    """Whether an attribute is a share that is left out; attention keeps it as a number."""
    if isinstance(module, nn.Dropout):
        return name == "p"
    return "dropout" in name and isinstance(value, float)


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Hold every weight in float32 for as long as training lasts; small updates need it."""
    tensors = [*module.parameters(), *module.buffers()]
    tables = [part for part in module.modules() if isinstance(part, QuantizedEmbedding)]
    looked_up = [table.dtype for table in tables]
    held = [(t, t.dtype) for t in tensors if t.is_floating_point() and t.dtype != torch.float32]
    try:
        for tensor, _ in held:
            tensor.data = tensor.data.float()
        for table in tables:
            table.dtype = torch.float32
        yield
    finally:
        for table, dtype in zip(tables, looked_up, strict=True):
            table.dtype = dtype
        for tensor, dtype in held:
            tensor.grad = None
            tensor.data = tensor.data.to(dtype)
