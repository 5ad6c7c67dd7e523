"""Keys and values that an attention caches, rounded as they are written.

PyTorch only simulates it: the cache holds what the codes stand for, in the dtype of the model.
"""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from attar.core.grid import Grid
from attar.layers.swap import swappable
from attar.ops.levels import snap
from attar.ops.rounding import through

CACHED = "cached"  # the name under an attention of what its keys and values go through
_ARGUMENT = "past_key_values"


class Cached(nn.Module):
    """Something in an attention that keys and values go through on their way to the cache.

    They have been through norms and rotary positions by then. Without a cache, where a whole
    text is computed at once, the attention is given what a cache would have held.
    """

    def attach(self, owner: nn.Module) -> None:
        """Stand between an attention and its cache."""
        if _through_cached not in owner._forward_pre_hooks.values():  # pyright: ignore[reportPrivateUsage]
            owner.register_forward_pre_hook(_through_cached, with_kwargs=True)


@swappable
class CacheGrid(Cached):
    """Cached keys on one scale, and values on another: levels of a grid, times the scale."""

    simulated = True
    key_scale: Tensor
    value_scale: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("key_scale", torch.ones((), dtype=torch.bfloat16))
        self.register_buffer("value_scale", torch.ones((), dtype=torch.bfloat16))

    def fill(self, keys: Tensor, values: Tensor) -> Self:
        """Take these scales, each a scalar."""
        self.key_scale, self.value_scale = keys.to(torch.bfloat16), values.to(torch.bfloat16)
        return self

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self._rounded(keys, self.key_scale), self._rounded(values, self.value_scale)

    def _rounded(self, exact: Tensor, scale: Tensor) -> Tensor:
        scale = scale.float()
        return through(exact, snap(exact.detach().float() / scale, self.grid) * scale)

    def spec(self) -> dict[str, Any]:
        """The grid."""
        return {"grid": self.grid.name}

    @classmethod
    def rebuild(cls, spec: dict[str, Any], model: nn.Module) -> nn.Module:
        """One with the same grid."""
        return cls(Grid.parse(spec["grid"]))


class _Written:
    """A cache, or none, whose keys and values go through something before they are written."""

    def __init__(self, cached: Cached, cache: Any) -> None:
        self._cached, self._cache = cached, cache

    def update(self, keys: Tensor, values: Tensor, *more: Any, **named: Any) -> Any:
        keys, values = self._cached(keys, values)
        if self._cache is None:
            return keys, values
        return self._cache.update(keys, values, *more, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _through_cached(owner: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    cached = cast("Cached", getattr(owner, CACHED))
    return args, {**kwargs, _ARGUMENT: _Written(cached, kwargs.get(_ARGUMENT))}
