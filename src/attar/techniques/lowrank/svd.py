"""Replace every linear by two thin ones, the nearest to its weight; no data needed."""

from __future__ import annotations

from attar.calibrate.install import install_factors
from attar.calibrate.linears import each_linear
from attar.core.context import Context
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, LOWRANK, MASKED
from attar.models.model import Model, weight_of
from attar.ops.factor import factored
from attar.techniques.lowrank._rank import SharedRanks, tell


class Svd(SharedRanks, Step, kind="lowrank/svd"):
    """Truncated singular value decomposition of each weight (Eckart and Young 1936)."""

    needs = frozenset({FLOAT})
    tasks = (*TASKS, "contrastive")
    media = True
    removes = frozenset({MASKED})
    adds = frozenset({LOWRANK})
    forbids = frozenset({LOWRANK})
    promises = frozenset({"changed", "smaller"})

    def apply(self, model: Model, ctx: Context) -> Model:
        """Factorize one linear at a time."""
        ranks = self.ranks(model.facts(), ctx)

        def change(name: str) -> float:
            weight = weight_of(model.module.get_submodule(name))
            factors = factored(weight, ranks[name])
            install_factors(model, name, factors)
            return factors.error

        tell(ctx, each_linear(model, self.scope, ctx, change, "factorizing"))
        return model
