"""Weights at 8 bits, and what they are multiplied with at 8 bits on ranges found beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from attar.calibrate.install import install_linear
from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.view import BlockView
from attar.calibrate.walk import walk
from attar.core.context import Context
from attar.core.grid import Grid, IntegerGridName
from attar.core.scope import ModuleFact, Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, QUANTIZED
from attar.layers import RoundedLinear, StaticLinear
from attar.models.model import Model, weight_of
from attar.ops.activations import InputGrid, Range
from attar.ops.gptq import nearest
from attar.ops.rounding import Codes

_SIGNED, _MIDDLE = Grid(bits=8), 128  # engines multiply outputs whose code for zero is the middle


class Static(Calibrated, Step, kind="quantize/static"):
    """W8A8 with one grid for all inputs of a linear (Jacob et al. 2018, arXiv 1712.05877).

    The grid is the one of least squared error on the inputs seen, block by block, each fed by
    the blocks already rounded. With `scores` the queries and keys of a block are rounded as well,
    to what they are before any rotary positions: that speeds up models without those (BERT and
    kin), whose engines then multiply whole numbers there too.
    """

    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT})
    adds = frozenset({QUANTIZED})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})

    grid: IntegerGridName = Field("int8-channel", description="the numbers a weight may take")
    sequences: int = Field(128, ge=1, description="calibration sequences")
    length: int = Field(128, ge=8, description="tokens in a sequence")
    scope: Scope = Field(Scope.linears(), description="the linears to quantize")
    scores: bool = Field(False, description="round queries and keys to 8 bits too")

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether there are queries and keys to round."""
        if self.scores and not _compared(modules, self.scope.select(modules)):
            yield (
                "scores: yes rounds what linears of queries and of keys put out, and the scope "
                f"{list(self.scope.patterns)} names none that are apart. Leave scores out"
            )

    def apply(self, model: Model, ctx: Context) -> Model:
        """Walk the blocks; round the linears of each once their inputs are known."""
        grid = Grid.parse(self.grid)
        facts = model.facts()
        compared = _compared(facts, self.scope.select(facts)) if self.scores else set[str]()

        def visit(view: BlockView) -> None:
            kept: dict[str, tuple[Codes, InputGrid]] = {}
            for names, inputs in view.groups(Range):
                found = inputs.fit()
                for name in names:
                    codes = nearest(weight_of(view.linears[name]), grid)
                    install_linear(model, name, codes, grid, StaticLinear).on(found)
                    if name in compared:
                        kept[name] = codes, found
            for name, seen in view.results(kept, Range).items():
                codes, found = kept[name]
                outputs = InputGrid(float(seen.scale(_SIGNED)), _MIDDLE)
                install_linear(model, name, codes, grid, RoundedLinear).on(found).onto(outputs)

        walk(model, calibration(self, model, ctx), self.scope, ctx, visit, "static")
        return model


def _compared(modules: Sequence[ModuleFact], chosen: Iterable[str]) -> set[str]:
    """The chosen linears of queries and of keys, in blocks where these are apart."""
    names, found = set(chosen), set[str]()
    for block in {module.block for module in modules if module.block is not None}:
        made = [m for m in modules if m.block == block and m.role == "attention" and m.linear]
        queries = [m.name for m in made if m.axes[:1] == ("query",)]
        keys = [m.name for m in made if m.axes[:1] == ("keys",)]  # those of values come after
        found |= {*queries[:1], *keys[:1]} & names
    return found
