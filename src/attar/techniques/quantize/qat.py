"""Train the weights as they are rounded, with their scales, toward the original's answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.calibrate.install import install_linear
from attar.core.context import Context
from attar.core.grid import Grid, GridName
from attar.core.scope import Scope
from attar.core.step import Step
from attar.core.traits import FLOAT, QUANTIZED
from attar.layers import DynamicLinear, QuantizedLinear
from attar.models.model import Model, weight_of
from attar.ops.activations import rounded_tokens
from attar.ops.lsq import lsq
from attar.ops.rounding import Codes, Scales, fit_scales, quantize, round_scale, through
from attar.techniques.quantize._solving import Embeddings, power_for
from attar.train.scoped import trained
from attar.train.seen import View, seen_through
from attar.train.taught import Taught

_FASTER = 10.0  # scales move by shares of themselves, weights by their numbers


class Qat(Taught, Embeddings, Step, kind="quantize/qat"):
    """Quantization-aware training (LSQ, Esser et al. 2020, arXiv 1902.08153) under a teacher.

    It starts from the scales of quantize/rtn. Every forward pass rounds the weights, and the
    codes and scales of the last one are installed; gradients pass straight through. The zeros
    of a pruned linear stay zeros. Embeddings are rounded before training, which makes up for it.
    """

    version = 4
    needs = frozenset({FLOAT})
    removes = frozenset({FLOAT})
    adds = frozenset({QUANTIZED})
    whole = True
    promises = frozenset({"changed", "smaller"})

    grid: GridName = Field("int4-g64", description="the numbers a weight may take")
    scales: Literal["trained", "fixed"] = Field(
        "trained", description="trained with the weights, or fixed as they are at the start"
    )
    activations: Literal["none", "dynamic"] = Field(
        "none",
        description="dynamic: inputs of the linears at 8 bits too, a grid for every token, as in "
        "quantize/dynamic",
    )
    scope: Scope = Field(
        Scope(patterns=("linears", "norm")),
        description="the linears to quantize, and what else is trained",
    )

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train what is rounded, and install the codes."""
        grid = Grid.parse(self.grid)
        self.round_embeddings(model)
        views = {
            name: _Rounded(weight_of(linear), grid, self.scales == "trained")
            for name, linear in model.linears(self.scope).items()
        }
        linears = [model.module.get_submodule(name) for name in views]
        with trained(model, self.scope), seen_through(model, views):
            with _inputs_rounded(linears if self.activations == "dynamic" else ()):
                self.learn(model, ctx)
            codes = {
                name: view.codes(weight_of(model.module.get_submodule(name)))
                for name, view in views.items()
            }
        cls = DynamicLinear if self.activations == "dynamic" else QuantizedLinear
        for name, found in codes.items():
            install_linear(model, name, found, grid, cls)
        return model


class _Rounded(View):
    """A weight on a grid; `gain` is what a scale grows by, as a share of it."""

    scales: Tensor
    zeros: Tensor | None
    minima: Tensor | None

    def __init__(self, weight: Tensor, grid: Grid, trained: bool) -> None:
        super().__init__()
        self.grid, fitted = grid, fit_scales(weight, grid, power=power_for(grid))
        self.register_buffer("scales", fitted.scales)
        self.register_buffer("zeros", fitted.zeros)
        self.register_buffer("minima", fitted.minima)
        self.gain = nn.Parameter(torch.zeros_like(fitted.scales)) if trained else None

    def seen(self, weight: Tensor) -> Tensor:
        return lsq(weight, self.fitted(), self.grid)

    def fitted(self) -> Scales:
        """The scales as training has moved them, rounded as they will be kept."""
        if self.gain is None:
            return Scales(self.scales, self.zeros, self.minima)
        scales = self.scales * (1 + _FASTER * self.gain)
        scales = through(scales, round_scale(scales.detach(), self.grid.powers))
        return Scales(scales, self.zeros, self.minima)

    def codes(self, seen: Tensor) -> Codes:
        """The codes of what is seen of a weight."""
        fitted = replace(self.fitted(), scales=self.fitted().scales.detach())
        return quantize(seen.detach(), fitted, self.grid)


@contextmanager
def _inputs_rounded(linears: Sequence[nn.Module]) -> Iterator[None]:
    """Round what these linears are given to 8 bits, as DynamicLinear does."""

    def arriving(_: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
        return rounded_tokens(inputs[0]), *inputs[1:]

    with ExitStack() as stack:
        for linear in linears:
            stack.callback(linear.register_forward_pre_hook(arriving).remove)
        yield
