"""Replace every linear by two thin ones, nearest where the loss feels it most."""

from __future__ import annotations

from pydantic import Field

from attar.calibrate.gradients import row_sensitivity
from attar.calibrate.install import install_factors
from attar.calibrate.linears import each_linear
from attar.calibrate.rows import Calibrated, calibration
from attar.core.context import Context
from attar.core.step import DataRef, Step
from attar.core.traits import FLOAT, LOWRANK, MASKED
from attar.models.model import Model, weight_of
from attar.ops.factor import factored
from attar.techniques.lowrank._rank import SharedRanks, tell
from attar.train.rows import labeled


class Fisher(SharedRanks, Calibrated, Step, kind="lowrank/fisher"):
    """Fisher-weighted decomposition (FWSVD, Hsu et al. 2022, arXiv 2207.00112).

    A row counts by the squared gradients of its weights, of the task's own loss, so a
    classifier's rows need labels. The gradients pass through the whole model at once.
    """

    needs = frozenset({FLOAT})
    removes = frozenset({MASKED})
    adds = frozenset({LOWRANK})
    forbids = frozenset({LOWRANK})
    promises = frozenset({"changed", "smaller"})

    data: DataRef = Field("train", description="the dataset whose loss is asked")
    sequences: int = Field(64, ge=1, description="sequences to take gradients of")
    batch: int = Field(1, ge=1, description="sequences whose gradient is squared as one")

    def apply(self, model: Model, ctx: Context) -> Model:
        """A pass for the gradients; then factorize one linear at a time."""
        labeled(self.data, model, ctx)
        names = list(model.linears(self.scope))
        importance = row_sensitivity(model, calibration(self, model, ctx), names, ctx)
        ranks = self.ranks(model.facts(), ctx)

        def change(name: str) -> float:
            weight = weight_of(model.module.get_submodule(name))
            factors = factored(weight, ranks[name], importance=importance[name])
            install_factors(model, name, factors)
            return factors.error

        tell(ctx, each_linear(model, self.scope, ctx, change, "factorizing"))
        return model
