"""Zeros that stay: which linears are masked, kept with the module and written into its config.

The weights are saved dense, so a masked model loads anywhere; the names in its config are all
that Attar needs to leave the zeros where they are when it trains the model further.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

KEY = "masked"  # of config.json: the names of masked linears


def mark(linear: nn.Module) -> None:
    """Say that the zeros in this linear's weight stay."""
    linear.masked = True  # pyright: ignore[reportArgumentType]


def is_masked(module: nn.Module) -> bool:
    """Whether the zeros in this module's weight stay."""
    return bool(getattr(module, "masked", False))


def write_names(module: Any) -> None:
    """Name the masked linears in the model's config."""
    names = [name for name, child in module.named_modules() if is_masked(child)]
    if names or hasattr(module.config, KEY):
        setattr(module.config, KEY, names)


def restore(module: nn.Module, config: Any) -> None:
    """Mark the linears that a config names."""
    names: Iterable[str] = getattr(config, KEY, None) or ()
    there = dict(module.named_modules())
    for name in names:
        if name in there:
            mark(there[name])


def hold_zeros(weight: Tensor) -> Any:
    """Let no gradient move this weight's zeros; `remove()` of what is returned ends that."""
    keep = weight.detach() != 0
    return weight.register_hook(lambda gradient: gradient * keep)
