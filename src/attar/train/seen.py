"""Weights that the forward pass sees through something while they are trained: masked, rounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attar.errors import UserError
from attar.models.model import Model, outputs_first
from attar.train.scoped import in_float32


class View(nn.Module):
    """What is seen of a weight, [outputs, inputs], that is trained dense.

    A view's own parameters are trained with the weights, and its buffers are kept with them in
    checkpoints and best states: they may hold what no weight tells, such as a mask.
    """

    turned = False  # whether the linear keeps its weight as [inputs, outputs]

    def forward(self, kept: Tensor) -> Tensor:
        return self.seen(kept.t()).t() if self.turned else self.seen(kept)

    def seen(self, weight: Tensor) -> Tensor:
        """What the linear multiplies with."""
        raise NotImplementedError

    def renew(self, weight: Tensor, step: int, steps: int) -> None:
        """Look at the dense weight before a step, counted from 0, of so many."""

    def final(self, done: int, steps: int) -> bool:
        """Whether what is seen after so many steps is what training may end with."""
        return True


@contextmanager
def seen_through(model: Model, views: Mapping[str, View]) -> Iterator[None]:
    """Let the linears of these names be seen through views, and all weights be in float32.

    Other modules that hold the same weight see the same of it. At the end every weight is what
    was seen of it; where an error ends it, the dense weight. The modules are plain again either
    way.
    """
    with in_float32(model.module):
        placed: list[_Placed] = []
        try:
            for name, view in views.items():
                placed.append(_place(model.module, name, view))
            yield
            seen = [found.seen() for found in placed]
        except BaseException:
            for found in placed:
                found.remove()
            raise
        for found, weight in zip(placed, seen, strict=True):
            found.remove()
            with torch.no_grad():
                found.weight.copy_(weight)


def views_of(module: nn.Module) -> dict[View, nn.Parameter]:
    """The views inside a module, and the dense weight of each, as it is kept."""
    found: dict[View, nn.Parameter] = {}
    for part in module.modules():
        view = part[0] if isinstance(part, parametrize.ParametrizationList) else None
        if isinstance(view, View):
            found[view] = cast("nn.Parameter", part.original)
    return found


def kept_of(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of all views inside a module, by name."""
    return {
        f"{name}.{leaf}": buffer
        for name, part in module.named_modules()
        if isinstance(part, View)
        for leaf, buffer in part.named_buffers()
    }


def renew(module: nn.Module, step: int, steps: int) -> None:
    """Let every view look at its weight before a step."""
    with torch.no_grad():
        for view, kept in views_of(module).items():
            view.renew(kept.t() if view.turned else kept, step, steps)


def final(module: nn.Module, done: int, steps: int) -> bool:
    """Whether the model after so many steps is one that training may end with."""
    return all(view.final(done, steps) for view in views_of(module))


def moving(module: nn.Module) -> bool:
    """Whether what is seen changes as training goes on, and with it what is to be learned."""
    return any(type(view).renew is not View.renew for view in views_of(module))


class _Placed:
    """A view at its places: the modules that hold its weight."""

    def __init__(self, weight: nn.Parameter, places: list[tuple[nn.Module, str]]) -> None:
        self.weight, self.places = weight, places
        # in the order that they had: sums over gradients go by it
        self.orders = [list(dict(owner.named_parameters(recurse=False))) for owner, _ in places]

    def seen(self) -> Tensor:
        owner, leaf = self.places[0]
        return cast("Tensor", getattr(owner, leaf)).detach().clone()

    def remove(self) -> None:
        for (owner, leaf), order in zip(self.places, self.orders, strict=True):
            parametrize.remove_parametrizations(owner, leaf, leave_parametrized=False)
            for name in order:
                parameter = getattr(owner, name)
                delattr(owner, name)
                owner.register_parameter(name, parameter)


def _place(module: nn.Module, name: str, view: View) -> _Placed:
    linear = module.get_submodule(name)
    weight = cast("nn.Parameter", linear.weight)
    view.turned = outputs_first(linear, weight) is not weight
    places = [
        (owner, leaf)
        for owner in module.modules()
        for leaf, parameter in owner.named_parameters(recurse=False)
        if parameter is weight
    ]
    if not places:
        raise UserError(f"{name} has no weight of its own: leave it out of the scope")
    placed = _Placed(weight, places)
    for owner, leaf in places:
        parametrize.register_parametrization(owner, leaf, view, unsafe=True)
    return placed
