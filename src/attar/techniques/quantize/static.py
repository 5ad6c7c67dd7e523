"""Weights at 8 bits, and what they are multiplied with at 8 bits on ranges found beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from pydantic import Field
from torch import nn

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
from attar.ops.activations import InputGrid, Inputs, Range
from attar.techniques.quantize._solving import solve_group

_SIGNED, _MIDDLE = Grid(bits=8), 128  # engines multiply outputs whose code for zero is the middle
_ATTENDED = 3.0  # power of the errors of what queries, keys and values are made of


class Static(Calibrated, Step, kind="quantize/static"):
    """W8A8 with one grid for all inputs of a linear (Jacob et al. 2018, arXiv 1712.05877).

    The grid is the one of least squared error on the inputs seen, each times the size of its
    weights, block by block, each fed by the blocks already rounded; to the power of three where
    queries, keys and values are made, since what is cut off there is magnified by the softmax.
    Weights are rounded by GPTQ, and a bias takes up what the mean of the outputs is off by (Nagel
    et al. 2019, arXiv 1906.04721). With `scores` the queries and keys of a block are rounded as
    well, to what they are before any rotary positions: that speeds up models without those (BERT
    and kin), whose engines then multiply whole numbers there too.
    """

    version = 2
    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT})
    adds = frozenset({QUANTIZED})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})
    walked = True

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
        attending = {m.name for m in facts if m.role == "attention" and m.axes[1:] == ("hidden",)}

        def visit(view: BlockView) -> None:
            for names, inputs in view.groups(Inputs):
                power = _ATTENDED if attending.intersection(names) else 2.0
                _round(view, names, inputs, grid, power)
            for name, seen in view.results(compared & view.linears.keys(), Range).items():
                outputs = InputGrid(float(seen.scale(_SIGNED)), _MIDDLE)
                old = cast("StaticLinear", model.module.get_submodule(name))
                new = install_linear(model, name, old.unpacked(), grid, RoundedLinear)
                new.on(old.input_grid).onto(outputs)

        walk(model, calibration(self, model, ctx), self.scope, ctx, visit, "static")
        return model


def _round(view: BlockView, names: list[str], inputs: Inputs, grid: Grid, power: float) -> None:
    """Round linears and the inputs that they share; biases take up what is off."""
    weights = {name: weight_of(view.linears[name]).detach() for name in names}
    energy = torch.stack([weight.float().square().sum(0) for weight in weights.values()]).sum(0)
    found = inputs.fit(energy, power)
    exact, coarse = inputs.means(found)
    gram = inputs.gram.mean
    if all(view.linears[name].bias is not None for name in names):
        gram = gram - exact.outer(exact)  # biases see to the mean
        gram.diagonal().clamp_min_(0)
    solve_group(view, names, gram, grid, cls=StaticLinear)
    for name, weight in weights.items():
        new = cast("StaticLinear", view.model.module.get_submodule(name)).on(found)
        if new.bias is not None:
            off = weight.float() @ exact - new.dequantized(torch.float32) @ coarse
            new.bias = nn.Parameter((new.bias.detach() + off).to(new.bias.dtype))


def _compared(modules: Sequence[ModuleFact], chosen: Iterable[str]) -> set[str]:
    """The chosen linears of queries and of keys, in blocks where these are apart."""
    names, found = set(chosen), set[str]()
    for block in {module.block for module in modules if module.block is not None}:
        made = [m for m in modules if m.block == block and m.role == "attention" and m.linear]
        queries = [m.name for m in made if m.axes[:1] == ("query",)]
        keys = [m.name for m in made if m.axes[:1] == ("keys",)]  # those of values come after
        found |= {*queries[:1], *keys[:1]} & names
    return found
