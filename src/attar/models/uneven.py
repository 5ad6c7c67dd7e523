"""Blocks of a size of their own: heads and neurons cut out of one block, in place.

Such a block says its shapes by itself, and its linears are uneven: of another shape than the
config's. Where a config can say what all blocks have come to, it does, and they are ordinary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from attar.core.scope import ModuleFact
from attar.layers import LowRank, Resized, swap
from attar.models.axes import in_block, ordinary, sizes_of, widths
from attar.models.families import family_of
from attar.models.load import skeleton
from attar.models.masks import is_masked, mark
from attar.models.model import Model, weight_of, width_of
from attar.models.resize import configs_of, rows_of, sliced, write_sizes

QUERIES, NEURONS = ("hidden", "query"), ("hidden", "neurons")  # axes of what ends either part


def uneven(module: Any, facts: Sequence[ModuleFact]) -> set[str]:
    """The linears of blocks whose shape is not what the config says; both factors of one."""
    family = family_of(module.config.model_type)
    if family.towers:  # nothing cuts their blocks
        return set()
    long = widths(sizes_of(module.config, family))
    found: set[str] = set()
    for fact in facts:
        if fact.block is None or not fact.linear:
            continue
        whole, shape = fact.name.rpartition(".")[0], fact.shape
        owner = module.get_submodule(whole)
        if isinstance(owner, LowRank):
            shape = (owner.out_features, owner.in_features)
        else:
            whole = fact.name
        axes = in_block(whole.partition(f".{fact.block}.")[2], "linear", family)
        pairs = zip(axes, shape, strict=False)
        if any(axis in long and long[axis] != size for axis, size in pairs):
            found.add(fact.name)
    return found


def keep_groups(model: Model, index: int, groups: Sequence[int]) -> None:
    """Keep these heads of keys and values in a block, each with the queries that share it."""
    own = _sizes(model, index)
    shared = own.queries // own.keys
    queries = [group * shared + query for group in groups for query in range(shared)]
    rows = rows_of(queries, groups, range(own.neurons), own)
    _keep(model, index, {axis: rows[axis] for axis in ("query", "keys", "qkv")})


def keep_neurons(model: Model, index: int, neurons: Sequence[int]) -> None:
    """Keep these feed-forward neurons in a block."""
    own = _sizes(model, index)
    rows = rows_of(range(own.queries), range(own.keys), neurons, own)
    _keep(model, index, {axis: rows[axis] for axis in ("neurons", "gated")})


def _sizes(model: Model, index: int) -> Any:
    """The widths of one block."""
    block, sizes = model.blocks[index], model.sizes
    queries = width_of(block.get_submodule(model.family.out)) // sizes.head
    return replace(
        sizes,
        queries=queries,
        keys=queries * sizes.keys // sizes.queries,
        neurons=width_of(block.get_submodule(model.family.down)),
    )


def _keep(model: Model, index: int, rows: Mapping[str, Tensor]) -> None:
    for fact in model.facts():
        if fact.block != index or not fact.linear or not rows.keys() & set(fact.axes):
            continue
        old: Any = model.module.get_submodule(fact.name)
        kept = [rows.get(axis) for axis in fact.axes]
        weight = sliced(weight_of(old).detach(), kept)
        if weight.shape == fact.shape:
            continue  # all stay, as plain as they were
        bias = None if old.bias is None else sliced(old.bias.detach(), kept[:1])
        height, width = weight.shape
        new = Resized(width, height, old.bias is not None, device="meta")
        _install(model, fact.name, new.fill(weight.contiguous(), bias))


def settle(model: Model, ending: tuple[str, str]) -> None:
    """Let the config say how large this part of all blocks is, and make its linears plain.

    Nothing is done where no config can say that.
    """
    facts = model.facts()
    if not ordinary(facts, ending):
        return
    first = _sizes(model, 0)
    new = replace(model.sizes, neurons=first.neurons)
    if ending == QUERIES:
        new = replace(model.sizes, queries=first.queries, keys=first.keys)
    for config in configs_of(model):
        write_sizes(config, model.family, new)
    for part in model.module.modules():
        if hasattr(part, "num_key_value_heads"):
            part.num_key_value_heads = new.keys
    config = copy.copy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = skeleton(config, model.task, model.labels).module
    for fact in facts:
        old = model.module.get_submodule(fact.name)
        if isinstance(old, Resized) and not uneven(model.module, [fact]):
            _install(model, fact.name, _filled(plain.get_submodule(fact.name), old))


def _filled(plain: Any, old: Resized) -> nn.Module:
    """The empty module with the weights of a resized one."""
    weight = old.weight.detach()
    plain.weight = nn.Parameter(weight.t().contiguous() if isinstance(plain, Conv1D) else weight)
    plain.register_parameter("bias", old.bias)
    return plain


def _install(model: Model, name: str, new: nn.Module) -> None:
    if is_masked(model.module.get_submodule(name)):
        mark(new)
    swap(model.module, name, new)
