"""The traits that a model's modules have, before any step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attar.core.scope import ModuleFact
from attar.core.traits import (
    ADAPTER,
    CACHED,
    FLOAT,
    HEADED,
    LOWRANK,
    MASKED,
    QUANTIZED,
    SHARED,
    UNEVEN,
    Trait,
)
from attar.layers import CacheGrid, LowRank
from attar.layers.heads import NAME, Heads
from attar.layers.shared import sharing
from attar.models.adapters import is_adapted
from attar.models.masks import is_masked
from attar.models.prompts import has_prompt
from attar.models.uneven import uneven


def traits_of(
    module: Any, facts: Sequence[ModuleFact], adapted: Sequence[str] = ()
) -> dict[str, set[Trait]]:
    """The traits that the original's modules start with; files may say that some are `adapted`."""
    traits: dict[str, set[Trait]] = {}
    prompted, shared = has_prompt(module), sharing(module)
    headed = isinstance(getattr(module, NAME, None), Heads)
    names = [name for name, part in module.named_modules() if isinstance(part, CacheGrid)]
    cached = tuple(f"{name.rpartition('.')[0]}." for name in names)
    for fact in facts:
        part = module.get_submodule(fact.name)
        traits[fact.name] = {QUANTIZED if hasattr(part, "simulated") else FLOAT}
        if is_masked(part):
            traits[fact.name].add(MASKED)
        inner = prompted and fact.linear and fact.block is not None
        if inner or is_adapted(part) or fact.name in adapted:
            traits[fact.name].add(ADAPTER)
        if fact.name in shared and fact.role != "norm":
            traits[fact.name].add(SHARED)
        if headed and fact.role != "norm":
            traits[fact.name].add(HEADED)
        if fact.linear and fact.name.startswith(cached):
            traits[fact.name].add(CACHED)
        if isinstance(module.get_submodule(fact.name.rpartition(".")[0]), LowRank):
            traits[fact.name].add(LOWRANK)
    for name in uneven(module, facts):
        traits[name].add(UNEVEN)
    return traits
