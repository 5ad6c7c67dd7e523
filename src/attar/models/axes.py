"""What each dimension of a weight runs over: heads, neurons, hidden channels, or none of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attar.core.scope import Heads, ModuleFact
from attar.layers.exits import NAME
from attar.models.families import Family

_LAST = ("classifier", "out_proj", "score", "seq_relationship")  # what ends in classes


@dataclass(frozen=True)
class Sizes:
    """The widths of a model, all blocks alike.

    `embedding` is the width of the embedding tables: the hidden size, but for some ELECTRAs.
    """

    hidden: int
    queries: int
    keys: int
    head: int
    neurons: int
    embedding: int


def sizes_of(config: Any, family: Family) -> Sizes:
    """The widths that a config gives."""
    hidden, queries = config.hidden_size, config.num_attention_heads
    width = family.embedding_width
    return Sizes(
        hidden=hidden,
        queries=queries,
        keys=getattr(config, "num_key_value_heads", None) or queries,
        head=(family.free_heads and getattr(config, "head_dim", None)) or hidden // queries,
        neurons=getattr(config, family.ffn) or 4 * hidden,  # GPT-2 leaves its own unsaid
        embedding=getattr(config, width) if width else hidden,
    )


def sizes_of_facts(facts: Sequence[ModuleFact]) -> Sizes:
    """The widths that the modules show, before any weight loads."""
    out = next(fact for fact in facts if fact.axes == ("hidden", "query"))
    down = next(fact for fact in facts if fact.axes == ("hidden", "neurons"))
    table = next(fact for fact in facts if fact.role == "embedding")
    heads = out.heads or Heads(1, 1, "free")
    return Sizes(
        hidden=out.shape[0],
        queries=heads.queries,
        keys=heads.keys,
        head=out.shape[1] // heads.queries,
        neurons=down.shape[1],
        embedding=table.shape[1],
    )


def widths(sizes: Sizes) -> dict[str, int]:
    """How long each axis is."""
    query, keys = sizes.queries * sizes.head, sizes.keys * sizes.head
    return {
        "hidden": sizes.hidden,
        "query": query,
        "keys": keys,
        "qkv": query + 2 * keys,
        "neurons": sizes.neurons,
        "gated": 2 * sizes.neurons,
    }


def misfit(old: Sizes, new: Sizes, rule: str) -> str | None:
    """Why an architecture cannot have these sizes, and what to ask for; None where it can."""
    if rule == "fill" and new.queries * new.head != new.hidden:
        whole = new.queries * new.head
        return (
            f"in this architecture the heads make up the hidden size: {new.queries} heads of "
            f"{new.head} are {whole}, and the hidden size would be {new.hidden}. Ask for both "
            f"together: heads: {new.queries} and hidden: {whole}"
        )
    if rule == "divide" and new.hidden % new.queries:
        nearest = max(1, round(new.hidden / new.queries)) * new.queries
        return (
            f"this architecture cannot have {new.queries} heads at a hidden size of {new.hidden}: "
            f"their number must divide it. Ask for hidden: {nearest}"
        )
    if old.embedding != old.hidden and new.hidden == new.embedding:
        return (
            f"with a hidden size of {new.hidden}, that of its embeddings, this architecture has no "
            "linear between the two, and this model has one. Ask for another hidden size"
        )
    return None


def ordinary(facts: Sequence[ModuleFact], ending: tuple[str, str]) -> bool:
    """Whether a config can say how large this part of the blocks is: all alike, and no misfit.

    `ending` are the axes of the linear that ends the part: `hidden`, and `query` or `neurons`.
    """
    ends = [fact for fact in facts if fact.axes == ending]
    whole = {fact.block for fact in ends} == {f.block for f in facts if f.block is not None}
    if not whole or len({fact.shape for fact in ends}) > 1:
        return False
    (hidden, width), heads = ends[0].shape, ends[0].heads
    if heads is None or heads.rule == "free":
        return True
    return width == hidden if heads.rule == "fill" else hidden % heads.queries == 0


def heads_of(config: Any, family: Family, width: int | None = None) -> Heads:
    """The heads of a block, and what the architecture asks of their number.

    `width` is that of all its query heads; None stands for what the config says.
    """
    sizes = sizes_of(config, family)
    queries = sizes.queries if width is None else width // sizes.head
    keys = queries * sizes.keys // sizes.queries
    return Heads(queries, keys, _rule(config, family), not family.alike)


def _rule(config: Any, family: Family) -> Any:
    rope: Any = getattr(config, "rope_parameters", None) or {}
    # Both read hidden / heads where all else reads head_dim: Phi's norms, Phi-3's long rotary
    # factors.
    if getattr(config, "qk_layernorm", False) or rope.get("short_factor") is not None:
        return "fill"
    if not family.free_heads:
        return "fill"
    return "divide" if family.heads_divide else "free"


def unsplit(name: str) -> str:
    """The name of the linear that a factor is of; any other name itself."""
    return name.removesuffix(".down").removesuffix(".up").removesuffix(".rest")


def in_block(inner: str, kind: str, family: Family) -> tuple[str, ...]:
    """The axes of a linear or norm of a block; `inner` is its path there."""
    if inner in family.qkv:
        if len(family.qkv) == 1:
            return "qkv", "hidden"
        return ("query" if inner == family.qkv[0] else "keys"), "hidden"
    if inner == family.out:
        return "hidden", "query"
    if inner in family.up:
        return ("gated" if family.fused_up else "neurons"), "hidden"
    if inner == family.down:
        return "hidden", "neurons"
    return ("" if kind != "norm" or inner in family.head_norms else "hidden",)


def outside(name: str, kind: str, wide: bool) -> tuple[str, ...]:
    """The axes of what sits before or after the blocks.

    `kind` is `table`, `norm`, `head` or `linear`. `wide`: the tables are as wide as the hidden
    states, and not brought to that width by a linear.
    """
    if name.startswith(f"{NAME}."):
        return "", ""
    table = "hidden" if wide else ""
    if kind in ("table", "head"):
        return "", table
    of_table = "embeddings." in name or name.startswith("generator_predictions.")
    if kind == "norm":
        return (table if of_table else "hidden",)
    leaf = name.rpartition(".")[2]
    if leaf in _LAST:
        return "", "hidden"
    if leaf == "embeddings_project":
        return "hidden", table
    return (table if of_table else "hidden"), "hidden"
