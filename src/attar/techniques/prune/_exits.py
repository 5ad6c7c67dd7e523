"""Whether a model has exits, which say which blocks they come after, and of what width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attar.core.scope import ModuleFact
from attar.layers.exits import NAME


def has_exits(modules: Sequence[ModuleFact]) -> bool:
    """Whether there are exits among the modules."""
    return any(fact.name.startswith(f"{NAME}.") for fact in modules)


def fixed_by_exits(modules: Sequence[ModuleFact]) -> Iterable[str]:
    """Why neither blocks nor channels can go any more, if there are exits."""
    if has_exits(modules):
        yield (
            "the model has exits (prune/early-exit), which fit its blocks and widths as they "
            "are. Move this step before the one that adds them"
        )
