"""GPTQ with more bits where the answers need them, at an average that is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from pydantic import Field

from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.sensitivity import divergences
from attar.calibrate.table import Part, label_of, parts_of, read_table, unread
from attar.calibrate.view import BlockView
from attar.calibrate.walk import tell_errors, walk
from attar.core.context import Context
from attar.core.grid import Grid, GridName
from attar.core.scope import ModuleFact, Scope
from attar.core.step import TASKS, FileRef, Step
from attar.core.traits import FLOAT, QUANTIZED
from attar.data.batches import Batch
from attar.models.model import Model
from attar.ops.allocate import share_out
from attar.techniques.quantize._solving import Embeddings, round_linear, solve_group


class Mixed(Calibrated, Embeddings, Step, kind="quantize/mixed"):
    """Each block's attention and MLP, or each linear, on a grid of its own, by sensitivity.

    Every part is rounded to nearest alone, on every grid, and the divergence of the answers
    measured (of a model of vectors 1 - cosine), or read from the table that `attar sensitivity`
    wrote; the grids are then chosen for
    the least sum of divergences at the average number of bits, and GPTQ (arXiv 2210.17323) rounds
    to them. Sums of single divergences tell the order well and the total roughly, as in HAWQ
    (arXiv 1905.03696).
    """

    version = 4
    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT})
    adds = frozenset({QUANTIZED})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})
    walked = True

    bits: float = Field(4.0, gt=0, le=8, description="the average of a code, scales not counted")
    grids: tuple[GridName, ...] = Field(
        ("int2-g64", "int3-g64", "int4-g64", "int8-g64"),
        min_length=2,
        description="the grids to choose from",
    )
    sensitivity: FileRef | None = Field(
        None,
        description="the table of `attar sensitivity --try 'quantize/rtn: {grid: ...}'` for every "
        "grid, to choose by, linear by linear where it was measured so; measured here without it",
    )
    measured: int = Field(8, ge=1, description="of these, sequences to measure sensitivity on")
    sweeps: int = Field(
        1, ge=0, description="times to refit the scales and move each code to its best after that"
    )
    scope: Scope = Field(Scope.linears(), description="the linears to quantize")

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether any choice of grids has this average."""
        least = min(Grid.parse(name).bits for name in self.grids)
        if self.bits < least:
            yield (
                f"bits: {self.bits:g} is below all of its grids, the smallest of which has "
                f"{least}. Ask for more bits, or add a smaller grid to `grids`"
            )
        if self.sensitivity is not None:
            chosen = self.scope.select(modules)
            yield from unread(self.sensitivity, lambda: self._read(modules, chosen))

    def apply(self, model: Model, ctx: Context) -> Model:
        """Measure, choose, and walk the blocks."""
        batches = calibration(self, model, ctx)
        chosen = self._choose(model, batches[: -(-self.measured // self.batch)], ctx)

        def visit(view: BlockView) -> list[float]:
            errors: list[float] = []
            for names, gram in view.groups():
                mean = view.steady(names, gram.mean)
                for grid in dict.fromkeys(chosen[name] for name in names):
                    alike = [name for name in names if chosen[name] == grid]
                    errors += solve_group(view, alike, mean, grid, self.sweeps)
            return errors

        tell_errors(ctx, walk(model, batches, self.scope, ctx, visit, "GPTQ"))
        self.round_embeddings(model)
        return model

    def _choose(self, model: Model, batches: list[Batch], ctx: Context) -> dict[str, Grid]:
        """The grid of every linear."""
        grids = [Grid.parse(name) for name in self.grids]
        if self.sensitivity is None:
            parts = parts_of(model, self.scope)
            changes = {grid.name: _rounding(model, grid) for grid in grids}
            lost = divergences(model, batches, parts, changes, ctx)
        else:
            parts, lost = self._read(model.facts(), list(model.linears(self.scope)))
        for label, found in lost.items():
            for part, value in zip(parts, found, strict=True):
                ctx.point(f"block divergence, {part.name} alone on {label}", part.block, value)
        losses = list(zip(*lost.values(), strict=True))
        costs = [[part.weights * grid.bits for grid in grids] for part in parts]
        budget = self.bits * sum(part.weights for part in parts)
        indices = share_out(losses, costs, budget)
        self._tell(ctx, parts, [grids[index] for index in indices])
        return {
            name: grids[index]
            for part, index in zip(parts, indices, strict=True)
            for name in part.names
        }

    def _read(
        self, modules: Sequence[ModuleFact], chosen: Collection[str]
    ) -> tuple[list[Part], dict[str, list[float]]]:
        """The table's parts in scope, and their divergences by grid; ValueError where it lacks."""
        table = read_table(self.sensitivity or "", modules, chosen)
        labels = {name: label_of("quantize/rtn", {"grid": name}) for name in self.grids}
        return table.parts, {name: table.divergences(label) for name, label in labels.items()}

    def _tell(self, ctx: Context, parts: list[Part], grids: list[Grid]) -> None:
        weights = sum(part.weights for part in parts)
        bits = sum(part.weights * grid.bits for part, grid in zip(parts, grids, strict=True))
        ctx.note("average bits", round(bits / max(1, weights), 3))
        ctx.note("parts on each grid", dict(sorted(Counter(grid.name for grid in grids).items())))


def _rounding(model: Model, grid: Grid) -> Callable[[list[str]], None]:
    def change(names: list[str]) -> None:
        for name in names:
            round_linear(model, name, grid)

    return change
