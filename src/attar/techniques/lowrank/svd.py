"""Replace every linear by two thin ones, the nearest to its weight; no data needed."""

from __future__ import annotations

from attar.calibrate.install import install_factors
from attar.core.context import Context
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, LOWRANK, MASKED
from attar.models.model import Model, weight_of
from attar.ops.factor import factored
from attar.techniques.lowrank._rank import Ranks, tell


class Svd(Ranks, Step, kind="lowrank/svd"):
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
        errors: list[float] = []
        linears = model.linears(self.scope)
        with ctx.progress.bar("factorizing", len(linears)) as bar:
            for name, linear in linears.items():
                weight = weight_of(linear)
                factors = factored(weight, self.rank(weight))
                install_factors(model, name, factors)
                errors.append(factors.error)
                bar.advance(1, name)
        tell(ctx, errors)
        return model
