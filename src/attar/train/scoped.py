"""Training a part of a model: only the parameters of the modules in scope want a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attar.core.scope import Scope
from attar.errors import UserError
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
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    names = set(parameters)
    if scope != Scope.everything():
        chosen = set(model.select(scope))
        names = {name for name in parameters if name.rpartition(".")[0] in chosen}
    names = {name for name in names if parameters[name].is_floating_point()}
    if not names:
        raise UserError(f"the scope {list(scope.patterns)} holds no weight that can be trained")
    holds: list[Any] = []
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        for name in names:
            parameters[name].requires_grad_(True)
            module, _, leaf = name.rpartition(".")
            if leaf == "weight" and is_masked(model.module.get_submodule(module)):
                holds.append(hold_zeros(parameters[name]))
        yield
    finally:
        for hold in holds:
            hold.remove()
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
