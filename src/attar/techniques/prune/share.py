"""Let several blocks use the same weights, so that few are kept; training heals the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic import Field

from attar.core.context import Context
from attar.core.scope import ModuleFact, Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, LOWRANK, MASKED, SHARED
from attar.layers import SharedBlocks, swap
from attar.layers.shared import NAME
from attar.models.model import Model


class Share(Step, kind="prune/share"):
    """Fewer distinct blocks, each run several times (ALBERT: Lan et al. 2020, arXiv 1909.11942).

    The model stays as deep and as slow, and takes the bytes of `distinct` blocks. Blocks share in
    one of two orders of Takase and Kiyono 2021 (arXiv 2104.06022), and start from the mean or
    from one of those that they stand for (Bae et al. 2024, arXiv 2410.20672). Afterwards only
    steps that train the whole model fit (adapt, distill): what changes one block changes several.
    """

    needs = frozenset({FLOAT})
    forbids = frozenset({LOWRANK, MASKED})
    adds = frozenset({SHARED})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})

    distinct: int = Field(ge=1, description="how many blocks keep weights of their own")
    order: Literal["cycle", "sequence"] = Field(
        "cycle",
        description="of six blocks and three: cycle 0 1 2 0 1 2, sequence 0 0 1 1 2 2",
    )
    start: Literal["mean", "first"] = Field(
        "mean", description="what is shared: the mean of the blocks that share, or the first one"
    )
    scope: Scope = Field(
        Scope.everything(),
        description="what is shared, such as mlp or blocks[1:-1]; whole blocks by default",
    )

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether there are blocks enough, and those that share are alike."""
        blocks = sorted(self.scope.blocks(modules))
        if self.distinct >= len(blocks):
            yield (
                f"{self.distinct} distinct blocks of the {len(blocks)} in its scope share nothing; "
                f"ask for fewer than {len(blocks)}"
            )
            return
        built = self._built(modules)
        for index, source in self._sources(blocks).items():
            if built[index] != built[source]:
                yield (
                    f"block {index} is built unlike block {source}, so they cannot share weights. "
                    "Leave one of them out of its scope"
                )
                return

    def touched(self, modules: Sequence[ModuleFact]) -> Sequence[str]:
        """What is in scope of the blocks that share with another."""
        sources = self._sources(sorted(self.scope.blocks(modules)))
        owners = list(sources.values())
        several = {index for index, source in sources.items() if owners.count(source) > 1}
        chosen = set(self.scope.select(modules))
        return [fact.name for fact in modules if fact.block in several and fact.name in chosen]

    def apply(self, model: Model, ctx: Context) -> Model:
        """Share, from the mean or the first."""
        facts = model.facts()
        self.insist(facts)
        before = model.parameters_count()
        sources = self._sources(sorted(self.scope.blocks(facts)))
        parts = None
        if self.scope != Scope.everything():
            parts = sorted({part for own in self._built(facts).values() for part in own})
        if self.start == "mean":
            for source in set(sources.values()):
                _average(model, [index for index, own in sources.items() if own == source], parts)
        everyone = [sources.get(index, index) for index in range(len(model.blocks))]
        swap(model.module, NAME, SharedBlocks(model.blocks_name, everyone, parts))
        ctx.note("whose weights each block uses", everyone)
        ctx.note("share of all weights", round(model.parameters_count() / before, 4))
        return model

    def _sources(self, blocks: Sequence[int]) -> dict[int, int]:
        """For each block in scope, the one whose weights it uses: the first of its group."""
        if self.order == "cycle":
            return {index: blocks[place % self.distinct] for place, index in enumerate(blocks)}
        groups = [place * self.distinct // len(blocks) for place in range(len(blocks))]
        pairs = zip(blocks, groups, strict=True)
        return {index: blocks[groups.index(group)] for index, group in pairs}

    def _built(self, modules: Sequence[ModuleFact]) -> dict[int, dict[str, tuple[int, ...]]]:
        """Of each block, the modules in scope by their path in it, with their shapes."""
        chosen = set(self.scope.select(modules))
        built: dict[int, dict[str, tuple[int, ...]]] = {}
        for fact in modules:
            if fact.block is not None and fact.name in chosen:
                path = fact.name.partition(f".{fact.block}.")[2]
                built.setdefault(fact.block, {})[path] = fact.shape
        return built


def _average(model: Model, blocks: Sequence[int], parts: Sequence[str] | None) -> None:
    """Give the first of these blocks the mean of their weights, in these parts of it."""
    every = [dict(model.blocks[index].named_parameters()) for index in blocks]
    with torch.no_grad():
        for name, parameter in every[0].items():
            if parts is None or name.rpartition(".")[0] in parts:
                parameter.copy_(torch.stack([own[name].float() for own in every]).mean(0))
