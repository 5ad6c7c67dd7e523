"""Thin factors for the strongest directions of a weight, and coarse codes for what they leave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from pydantic import Field

from attar.calibrate.install import install_parts
from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.view import BlockView
from attar.calibrate.walk import tell_errors, walk
from attar.core.context import Context
from attar.core.grid import Grid, GridName
from attar.core.scope import ModuleFact, Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, LOWRANK, MASKED, QUANTIZED
from attar.models.model import Model, weight_of
from attar.ops.gram import lost_share
from attar.ops.residual import parted
from attar.techniques.lowrank._rank import Parts, no_linears, split_up


class Residual(Calibrated, Step, kind="lowrank/residual"):
    """W = UD + Q: factors on one grid, the residual on a coarser one, each fitted to the other.

    In turns, as in CALDERA (arXiv 2405.18886): the factors take what is exact for the inputs'
    gram of what the codes leave, nothing at first (as in SVDQuant, arXiv 2411.05007), and GPTQ
    rounds what the factors leave. Block by block, each fed by the blocks already changed.
    """

    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT, MASKED})
    adds = frozenset({QUANTIZED, LOWRANK})
    forbids = frozenset({LOWRANK})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})
    walked = True

    rank: int = Field(32, ge=1, description="the rank of the factors")
    factors: GridName = Field("int8-channel", description="the grid of the factors")
    grid: GridName = Field("int3-g64", description="the grid of what they leave")
    rounds: int = Field(2, ge=1, description="times that each is fitted to the other")
    scope: Scope = Field(Scope.linears(), description="the linears to change")

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether factors of this rank hold fewer weights than what they stand for."""
        yield from no_linears(self.scope, modules)
        chosen = set(self.scope.select(modules))
        for fact in (fact for fact in modules if fact.name in chosen and fact.linear):
            if self.rank * sum(fact.shape) >= prod(fact.shape):
                rows, width = fact.shape
                yield (
                    f"rank: {self.rank} makes more weights of {fact.name}, {rows} by {width}, than "
                    "it has. Lower it, or narrow the scope"
                )
                return

    def reshape(self, modules: Sequence[ModuleFact]) -> Sequence[ModuleFact]:
        """Three linears where there was one."""

        def parts(fact: ModuleFact) -> Parts:
            rows, width = fact.shape
            return {"down": (self.rank, width), "up": (rows, self.rank), "rest": (rows, width)}

        return split_up(self.scope, modules, parts)

    def apply(self, model: Model, ctx: Context) -> Model:
        """Walk the blocks; split the linears of each."""
        thin, coarse = Grid.parse(self.factors), Grid.parse(self.grid)

        def visit(view: BlockView) -> list[float]:
            errors: list[float] = []
            for names, gram in view.groups():
                mean = gram.mean
                for name in names:
                    weight = weight_of(view.linears[name])
                    found = parted(weight, mean, self.rank, thin, coarse, self.rounds)
                    new = install_parts(model, name, found, thin, coarse)
                    errors.append(lost_share(weight, new.weight, mean))
            return errors

        batches = calibration(self, model, ctx)
        tell_errors(ctx, walk(model, batches, self.scope, ctx, visit, "residual"))
        return model
