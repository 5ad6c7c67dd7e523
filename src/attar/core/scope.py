"""Which modules a step touches: the one selection dialect of the package."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, field_validator, model_serializer, model_validator

_BLOCKS = re.compile(r"blocks\[(-?\d*):(-?\d*)\]|blocks\[(-?\d+)\]")
ROLES = ("attention", "mlp", "embedding", "head", "norm", "other")


@dataclass(frozen=True)
class Heads:
    """Attention heads of a block: `queries`, and `keys` (of keys and values alike).

    `rule` says what the architecture asks of their number: `free`; `divide`: it divides the
    hidden size; `fill`: that many times a head's size is the hidden size. `own`: a block may
    have another number of them than its config says.
    """

    queries: int
    keys: int
    rule: Literal["free", "divide", "fill"]
    own: bool = True


@dataclass(frozen=True)
class ModuleFact:
    """What is known of a module before any weight loads.

    `role` is one of ROLES; `block` is the index of the block it sits in, or None;
    `shape` is (outputs, inputs) for a linear and the table's shape for an embedding.
    `axes` names what each dimension of `shape` runs over: `hidden`, `query`, `keys`, `qkv`
    (those one after another), `neurons`, `gated` (neurons twice), or nothing that a model
    can be narrowed in. `heads` are those of an attention's linear.
    """

    name: str
    role: str
    linear: bool
    block: int | None
    shape: tuple[int, ...]
    axes: tuple[str, ...] = ()
    heads: Heads | None = None


def outside_blocks(modules: Sequence[ModuleFact], chosen: Iterable[str]) -> Iterator[str]:
    """Say which of the chosen linears a walk through the blocks cannot reach, if any."""
    names = set(chosen)
    found = [m.name for m in modules if m.linear and m.block is None and m.name in names]
    if found:
        yield (
            f"{found[0]} lies outside the blocks, which this step goes through one by one. Leave "
            "it out of the scope, as `linears` does, or take a step that needs no data for it"
        )


class Scope(BaseModel):
    """A list of patterns; a module is in when a pattern names it and none starting with ! does.

    A pattern is a word (`linears`: every linear inside the blocks; `attention`, `mlp`: those
    of that part; `embedding`, `head`; `all`), a range of blocks (`blocks[2:6]`, `blocks[-1]`),
    a glob over module names (`*.down_proj`), or several of these joined by `&`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    patterns: tuple[str, ...] = ("linears",)

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"patterns": (value,)}
        if isinstance(value, list | tuple):
            return {"patterns": tuple(cast("list[Any]", value))}
        return value

    @field_validator("patterns")
    @classmethod
    def _none_empty(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if any(not part.strip() for p in patterns for part in p.removeprefix("!").split("&")):
            raise ValueError(
                "an empty pattern names no module; write `linears`, `attention`, `mlp`, `all`, "
                "`blocks[2:6]`, or a pattern over module names"
            )
        return patterns

    @model_serializer
    def _plain(self) -> list[str]:
        return list(self.patterns)

    @classmethod
    def of(cls, *patterns: str) -> Scope:
        """A scope of these patterns."""
        return cls(patterns=patterns)

    @classmethod
    def linears(cls) -> Scope:
        """Every linear inside the blocks: what most methods touch."""
        return cls.of("linears")

    @classmethod
    def everything(cls) -> Scope:
        """Every module."""
        return cls.of("all")

    def select(self, modules: Sequence[ModuleFact]) -> list[str]:
        """The names in scope, in the order of the model."""
        count = 1 + max((m.block for m in modules if m.block is not None), default=-1)
        wanted = [p for p in self.patterns if not p.startswith("!")]
        unwanted = [p[1:] for p in self.patterns if p.startswith("!")]
        return [
            m.name
            for m in modules
            if any(_matches(p, m, count) for p in wanted)
            and not any(_matches(p, m, count) for p in unwanted)
        ]

    def blocks(self, modules: Sequence[ModuleFact]) -> set[int]:
        """The blocks of which something is in scope."""
        names = set(self.select(modules))
        return {m.block for m in modules if m.name in names and m.block is not None}


def _matches(pattern: str, module: ModuleFact, blocks: int) -> bool:
    return all(_matches_one(part.strip(), module, blocks) for part in pattern.split("&"))


def _matches_one(word: str, module: ModuleFact, blocks: int) -> bool:
    if word == "all":
        return True
    if word == "linears":
        return module.linear and module.block is not None
    if word in ("attention", "mlp"):
        return module.role == word and module.linear
    if word in ROLES:
        return module.role == word
    match = _BLOCKS.fullmatch(word)
    if match is not None:
        if match[3] is not None:
            index = int(match[3])
            chosen = (index if index >= 0 else blocks + index,)
        else:
            start, stop = (int(text) if text else None for text in (match[1], match[2]))
            chosen = range(blocks)[start:stop]
        return module.block in chosen
    return fnmatchcase(module.name, word)
