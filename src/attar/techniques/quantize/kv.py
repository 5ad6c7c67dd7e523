"""Keys and values at 8 bits in the cache, on scales found beforehand; weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from attar.calibrate.refusals import insist_finite
from attar.calibrate.rows import Calibrated, calibration
from attar.core.context import Context
from attar.core.grid import Grid
from attar.core.scope import ModuleFact, Scope
from attar.core.step import Step
from attar.core.traits import CACHED
from attar.layers import CACHED as NAME
from attar.layers import Cached, CacheGrid, swap
from attar.models.model import Model, inference
from attar.ops.activations import Range


class Kv(Calibrated, Step, kind="quantize/kv"):
    """One scale for the cached keys of a block and one for its values, as engines hold them.

    Each leaves the least squared error on the keys (after norms and rotary positions) and
    values seen. The cache is rounded in the blocks where the scope names a linear of the
    attention, whatever grid its weights are on. Steps may follow, but for prune/width.
    """

    needs = frozenset()
    adds = frozenset({CACHED})
    tasks = ("causal-lm",)
    promises = frozenset({"changed"})

    cache: Literal["fp8-e4m3", "int8"] = Field(
        "fp8-e4m3", description="the numbers that a key or a value may take"
    )
    scope: Scope = Field(Scope.of("attention"), description="the attentions whose cache to round")

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether the scope names an attention at all."""
        chosen = self.scope.select(modules)
        if chosen and not _blocks(modules, chosen):
            yield (
                f"the scope {list(self.scope.patterns)} names no linear of an attention, which is "
                "what makes keys and values. Write `attention`, or `attention & blocks[2:6]`"
            )

    def touched(self, modules: Sequence[ModuleFact]) -> Sequence[str]:
        """All linears of the attentions, whichever of them are in scope."""
        blocks = set(_blocks(modules, self.scope.select(modules)))
        return [m.name for m in modules if m.block in blocks and m.linear and m.role == "attention"]

    def apply(self, model: Model, ctx: Context) -> Model:
        """Watch keys and values pass, and round from then on."""
        grid, module = Grid.parse(f"{self.cache}-channel"), model.module
        attention = model.family.attention_name
        blocks = _blocks(model.facts(), model.select(self.scope))
        watched = {f"{model.blocks_name}.{i}.{attention}.{NAME}": Watch() for i in blocks}
        for name, watch in watched.items():
            swap(module, name, watch)
        batches = calibration(self, model, ctx)
        with ctx.progress.bar("keys and values", len(batches)) as bar:
            for batch in batches:
                with inference(model.device, ctx.precision):
                    model.hidden(batch.to(model.device))
                bar.advance()
        for name, watch in watched.items():
            insist_finite({name: watch.keys.numbers(), f"{name} (values)": watch.values.numbers()})
            keys, values = watch.keys.scale(grid), watch.values.scale(grid)
            swap(module, name, CacheGrid(grid).fill(keys, values).to(model.device))
        return model


class Watch(Cached):
    """Counts the keys and values that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = Range(), Range()

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys.add(keys)
        self.values.add(values)
        return keys, values


def _blocks(modules: Sequence[ModuleFact], chosen: Iterable[str]) -> list[int]:
    """The blocks of which a linear of the attention is chosen."""
    names = set(chosen)
    found = {m.block for m in modules if m.name in names and m.linear and m.role == "attention"}
    return sorted(block for block in found if block is not None)
