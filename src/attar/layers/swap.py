"""One way to change a module, and to say and repeat what was changed."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import nn

T = TypeVar("T")
_KINDS: dict[str, type[Swap]] = {}


@runtime_checkable
class Swap(Protocol):
    """A module that Attar installs: it can say how to build it again, empty."""

    def spec(self) -> dict[str, Any]:
        """Plain data from which `rebuild` makes the same module, but for its weights."""
        ...

    @classmethod
    def rebuild(cls, spec: dict[str, Any], model: nn.Module) -> nn.Module:
        """The module that `spec` describes, on the current default device, weights unset."""
        ...


@runtime_checkable
class Attached(Protocol):
    """A module that needs to tell the one that it is put into."""

    def attach(self, owner: nn.Module) -> None:
        """Do so."""
        ...


def swappable(cls: type[T]) -> type[T]:
    """Register a class of modules under its name, so that files can name it."""
    _KINDS[cls.__name__] = cast("type[Swap]", cls)
    return cls


def swap(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where the module called `name` is, or where there is none yet."""
    parent, _, leaf = name.rpartition(".")
    owner = model.get_submodule(parent)
    new.train(owner.training)
    setattr(owner, leaf, new)
    if isinstance(new, Attached):
        new.attach(owner)


def spec_of(module: nn.Module) -> dict[str, Any] | None:
    """What to write down of a module that Attar installed; None for any other."""
    if type(module).__name__ not in _KINDS:
        return None
    return {"type": type(module).__name__, **cast("Swap", module).spec()}


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of a model's weights, as its first float parameter has it."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def build(spec: dict[str, Any], model: nn.Module) -> nn.Module:
    """The empty module that `spec` describes. Raises KeyError on an unknown type."""
    rest = dict(spec)
    return _KINDS[rest.pop("type")].rebuild(rest, model)
