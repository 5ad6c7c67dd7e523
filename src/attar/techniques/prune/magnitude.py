"""Set the smallest weights of every linear to zero; no data needed."""

from __future__ import annotations

from pydantic import Field

from attar.calibrate.linears import each_linear
from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, MASKED
from attar.models.model import Model, weight_of
from attar.techniques.prune._sparsity import SharedSparsity, Zeros, check_ties, put, tell


class Magnitude(SharedSparsity, Step, kind="prune/magnitude"):
    """Magnitude pruning (Han et al. 2015, arXiv 1506.02626), within each linear."""

    needs = frozenset({FLOAT})
    tasks = (*TASKS, "contrastive")
    media = True
    adds = frozenset({MASKED})
    promises = frozenset({"changed"})

    scope: Scope = Field(Scope.linears(), description="the linears to prune")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Prune one linear at a time."""
        patterns = self.patterns(model, ctx)
        check_ties(model, patterns)

        def change(name: str) -> Zeros:
            weight = weight_of(model.module.get_submodule(name)).detach()
            return put(model, name, weight * patterns[name].together(weight.float().abs()))

        tell(ctx, each_linear(model, self.scope, ctx, change, "pruning"))
        return model
