"""Blocks that share their weights.

No block is wrapped or renamed: each keeps modules of its own, for a decoder's cache knows them
apart, and their parameters are the same tensors. What says so is one more submodule of the whole
model, called `shared_blocks`, which holds no weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import nn

from attar.layers.swap import swappable

NAME = "shared_blocks"


@swappable
class SharedBlocks(nn.Module):
    """Lets each block of the list called `blocks` use the weights of another, or its own.

    `sources` is for each block the number of the one whose weights it uses, never a later one;
    `parts` are the paths within a block of the modules that share, None for all of it.
    """

    def __init__(
        self, blocks: str, sources: Sequence[int], parts: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.blocks, self.sources = blocks, list(sources)
        self.parts = None if parts is None else list(parts)

    def attach(self, owner: Any) -> None:
        """Share, and tell transformers, which then writes and reads each weight once."""
        blocks = cast("nn.ModuleList", owner.get_submodule(self.blocks))
        ties = dict(getattr(owner, "all_tied_weights_keys", None) or {})
        for index, source in enumerate(self.sources):
            theirs = dict(blocks[source].named_parameters())
            for name in self._names(blocks[index]) if index != source else ():
                module, _, leaf = name.rpartition(".")
                setattr(blocks[index].get_submodule(module), leaf, theirs[name])
                ties[f"{self.blocks}.{index}.{name}"] = f"{self.blocks}.{source}.{name}"
        owner.all_tied_weights_keys = ties
        if any(type(part).__name__ == "Conv1D" for part in blocks.modules()):
            owner._adjust_bias = _as_it_is

    def sharing(self, owner: nn.Module) -> set[str]:
        """The names of all modules whose weights are those of another, too."""
        blocks = cast("nn.ModuleList", owner.get_submodule(self.blocks))
        return {
            f"{self.blocks}.{index}.{name.rpartition('.')[0]}"
            for index, source in enumerate(self.sources)
            if self.sources.count(source) > 1
            for name in self._names(blocks[index])
        }

    def spec(self) -> dict[str, Any]:
        """Which blocks, whose weights each uses, and which parts of it."""
        return {"blocks": self.blocks, "sources": self.sources, "parts": self.parts}

    @classmethod
    def rebuild(cls, spec: dict[str, Any], model: nn.Module) -> nn.Module:
        """The same again."""
        return cls(spec["blocks"], spec["sources"], spec["parts"])

    def _names(self, block: nn.Module) -> Iterator[str]:
        """The parameters of a block that share."""
        for name, _ in list(block.named_parameters()):
            if self.parts is None or name.rpartition(".")[0] in self.parts:
                yield name


def _as_it_is(part: nn.Module, tied: nn.Parameter) -> None:
    """In the place of what fits a bias to the first dimension of a weight that is tied.

    transformers does so for heads that are tied to tables. GPT-2's linears keep the outputs last.
    """


def sharing(module: nn.Module) -> set[str]:
    """The names of the modules of a model whose weights are those of another module, too."""
    found = getattr(module, NAME, None)
    return found.sharing(module) if isinstance(found, SharedBlocks) else set()
