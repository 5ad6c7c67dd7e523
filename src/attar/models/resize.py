"""Making a loaded model shallower or narrower; the result is an ordinary model of its family.

Pure surgery: which blocks, heads, neurons and channels go is decided elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from attar.core.scope import ModuleFact
from attar.errors import UserError
from attar.layers import spec_of, swap
from attar.models.axes import Sizes, heads_of, misfit
from attar.models.families import Family
from attar.models.load import auto_of, quiet
from attar.models.masks import is_masked, mark
from attar.models.model import Model

Kept = list[list[int]]  # for each block, the indices that are kept, in their new order


def drop_blocks(model: Model, indices: Iterable[int]) -> None:
    """Take blocks out of a model, in place; works on quantized blocks too."""
    count, gone = len(model.blocks), sorted(set(indices))
    _check_blocks(model, gone)
    kept = [index for index in range(count) if index not in gone]
    swap(model.base, model.family.blocks, nn.ModuleList(model.blocks[index] for index in kept))
    for index, block in enumerate(model.blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # pyright: ignore[reportArgumentType]
    for config in configs_of(model):
        _shorten(config, kept)


def configs_of(model: Model) -> list[Any]:
    """Every config that a part of the model holds."""
    found: dict[int, Any] = {
        id(module.config): module.config
        for module in model.module.modules()
        if hasattr(module, "config")
    }
    return list(found.values())


def _check_blocks(model: Model, gone: list[int]) -> None:
    count = len(model.blocks)
    outside = [index for index in gone if not 0 <= index < count]
    if outside:
        raise UserError(f"there is no block {outside[0]}: the model has blocks 0 to {count - 1}")
    if len(gone) >= count:
        raise UserError(f"all {count} blocks would be removed; at least one must stay")
    if 0 in gone and model.family.first_block_differs:
        raise UserError(
            f"block 0 of {model.config.model_type} is built unlike the others and must stay; "
            "remove another"
        )
    if gone and getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        raise UserError(
            "this GPT-2 scales each block's attention by its number "
            "(scale_attn_by_inverse_layer_idx), so no block can be removed"
        )


def _shorten(config: Any, kept: list[int]) -> None:
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in kept]
    if getattr(config, "max_window_layers", None) is not None:
        config.max_window_layers = sum(index < config.max_window_layers for index in kept)


@dataclass(frozen=True)
class _Cut:
    """What stays: query heads, their key heads and neurons by block, and channels."""

    queries: Kept
    keys: Kept
    neurons: Kept
    channels: list[int]


def narrow(
    model: Model,
    heads: Kept | None = None,
    neurons: Kept | None = None,
    channels: list[int] | None = None,
) -> Model:
    """A new model with only these query heads and neurons of each block, and these channels.

    None keeps all. Every block keeps as many as the others, in the order given. Query heads
    that share a key head stay together: each key head whose queries are kept, stays, with as
    many queries as the others. Raises UserError where the architecture cannot have the sizes.
    """
    foreign = [name for name, child in model.module.named_modules() if spec_of(child)]
    if foreign:
        raise UserError(f"{foreign[0]} is no plain module; narrow a model before changing it so")
    old, count = model.sizes, len(model.blocks)
    cut = _Cut(
        queries=heads or [list(range(old.queries))] * count,
        keys=[],
        neurons=neurons or [list(range(old.neurons))] * count,
        channels=channels or list(range(old.hidden)),
    )
    _check_lists(cut, old, count)
    cut = replace(cut, keys=_keys_of(cut.queries, old))
    new = Sizes(
        hidden=len(cut.channels),
        queries=len(cut.queries[0]),
        keys=len(cut.keys[0]),
        head=old.head,
        neurons=len(cut.neurons[0]),
        embedding=len(cut.channels) if old.embedding == old.hidden else old.embedding,
    )
    trouble = misfit(old, new, heads_of(model.config, model.family).rule)
    if trouble:
        raise UserError(trouble)
    return _filled(model, _empty(model, new), cut)


def _check_lists(cut: _Cut, old: Sizes, count: int) -> None:
    for what, lists, limit in (
        ("heads", cut.queries, old.queries),
        ("neurons", cut.neurons, old.neurons),
        ("channels", [cut.channels], old.hidden),
    ):
        if what != "channels" and len(lists) != count:
            raise UserError(f"{what} are given for {len(lists)} blocks; the model has {count}")
        for kept in lists:
            if len(kept) != len(lists[0]):
                raise UserError(f"every block must keep the same number of {what}")
            if not kept or len(set(kept)) < len(kept) or not set(kept) <= set(range(limit)):
                raise UserError(f"the kept {what} must be different numbers below {limit}")


def _keys_of(queries: Kept, old: Sizes) -> Kept:
    """The key heads of the kept query heads, in order."""
    group = old.queries // old.keys
    keys = [list(dict.fromkeys(head // group for head in kept)) for kept in queries]
    for kept, shared in zip(queries, keys, strict=True):
        each = len(kept) // len(shared)
        if [head // group for head in kept] != [key for key in shared for _ in range(each)]:
            raise UserError(
                f"{old.queries} heads share {old.keys} heads of keys and values, {group} each: of "
                f"the kept heads {kept}, as many must share each, side by side"
            )
    if len({len(shared) for shared in keys}) > 1:
        raise UserError("every block must keep the same number of key and value heads")
    return keys


def _empty(model: Model, new: Sizes) -> Any:
    """The module of the new sizes: its computed buffers right, its weights unset."""
    config = copy.deepcopy(model.config)
    write_sizes(config, model.family, new)
    with quiet(), no_init_weights():
        module = auto_of(config, model.task).from_config(
            config, dtype=model.module.dtype, attn_implementation=config._attn_implementation
        )
    module.tie_weights()  # which it does as it draws weights
    if hasattr(model.module, "generation_config"):
        module.generation_config = model.module.generation_config
    return module.to(model.device).eval()


def write_sizes(config: Any, family: Family, new: Sizes) -> None:
    """Let a config say these sizes."""
    config.hidden_size = new.hidden
    config.num_attention_heads = new.queries
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = new.keys
    said = getattr(config, "head_dim", None) is not None
    if said or new.queries * new.head != new.hidden:
        config.head_dim = new.head
    setattr(config, family.ffn, new.neurons)
    if family.embedding_width:
        setattr(config, family.embedding_width, new.embedding)


def _filled(model: Model, module: Any, cut: _Cut) -> Model:
    """Slice every weight by what its dimensions run over, and put it into the new module."""
    channels = torch.tensor(cut.channels)
    per_block = [
        {"hidden": channels, **rows_of(queries, keys, neurons, model.sizes)}
        for queries, keys, neurons in zip(cut.queries, cut.keys, cut.neurons, strict=True)
    ]
    state: dict[str, Tensor] = dict(model.module.state_dict())
    for fact in model.facts():
        rows = {"hidden": channels} if fact.block is None else per_block[fact.block]
        for name, axes in _parameters(model.module.get_submodule(fact.name), fact):
            state[name] = sliced(state[name], [rows.get(axis) for axis in axes])
    wanted = module.state_dict()
    wrong = [name for name in chain(state, wanted) if not _same(state, wanted, name)]
    if wrong:
        raise RuntimeError(f"narrowing left {wrong[0]} in a shape that the new config has not")
    module.load_state_dict(state)
    for fact in model.facts():
        if is_masked(model.module.get_submodule(fact.name)):
            mark(module.get_submodule(fact.name))
    new = Model(module, model.tokenizer, model.task, model.labels)
    _keep_scale(model, new)
    return new


def rows_of(
    queries: Sequence[int], keys: Sequence[int], neurons: Sequence[int], old: Sizes
) -> dict[str, Tensor]:
    """For each axis of a block of the `old` sizes, the indices that belong to what is kept."""
    query, key, inner = _spread(queries, old.head), _spread(keys, old.head), torch.tensor(neurons)
    start = old.queries * old.head
    values = start + old.keys * old.head
    return {
        "query": query,
        "keys": key,
        "qkv": torch.cat([query, start + key, values + key]),
        "neurons": inner,
        "gated": torch.cat([inner, old.neurons + inner]),
    }


def _spread(heads: Sequence[int], size: int) -> Tensor:
    return (torch.tensor(heads)[:, None] * size + torch.arange(size)).flatten()


def _parameters(module: nn.Module, fact: ModuleFact) -> list[tuple[str, tuple[str, ...]]]:
    """Names of a module's own parameters, with the axes of each."""
    axes = fact.axes[::-1] if isinstance(module, Conv1D) else fact.axes
    found = dict(module.named_parameters(recurse=False))
    return [(f"{fact.name}.{name}", axes if name == "weight" else fact.axes[:1]) for name in found]


def sliced(value: Tensor, rows: Sequence[Tensor | None]) -> Tensor:
    """A tensor with only these indices of each dimension; None keeps all of it."""
    for dimension, kept in enumerate(rows):
        if kept is not None:
            value = value.index_select(dimension, kept.to(value.device))
    return value


def _same(state: dict[str, Tensor], wanted: dict[str, Tensor], name: str) -> bool:
    return name in state and name in wanted and state[name].shape == wanted[name].shape


def _keep_scale(old: Model, new: Model) -> None:
    """Make up for a scale of the embeddings that is the root of the hidden size (Gemma).

    The table grows by as much as that scale shrank; a head tied to it would grow too, and the
    norm before it, whose factor is 1 + weight, makes up for that.
    """
    table, before = (model.module.get_input_embeddings() for model in (new, old))
    if not hasattr(table, "scalar_embed_scale") or new.sizes.hidden == old.sizes.hidden:
        return
    factor = before.scalar_embed_scale / table.scalar_embed_scale
    head = new.module.get_output_embeddings()
    with torch.no_grad():
        table.weight.mul_(factor)
        if head is not None and head.weight is table.weight:
            norm: Any = new.base.norm
            norm.weight.add_(1).div_(factor).sub_(1)
