"""Set the smallest weights of every linear to zero; no data needed."""

from __future__ import annotations

from pydantic import Field

from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, MASKED
from attar.models.model import Model, weight_of
from attar.techniques.prune._sparsity import Sparsity, Zeros, put, tell


class Magnitude(Sparsity, Step, kind="prune/magnitude"):
    """Magnitude pruning (Han et al. 2015, arXiv 1506.02626), within each linear."""

    needs = frozenset({FLOAT})
    tasks = (*TASKS, "contrastive")
    media = True
    adds = frozenset({MASKED})
    promises = frozenset({"changed"})

    scope: Scope = Field(Scope.linears(), description="the linears to prune")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Prune one linear at a time."""
        pattern, counts = self.wanted(), list[Zeros]()
        linears = model.linears(self.scope)
        with ctx.progress.bar("pruning", len(linears)) as bar:
            for name, linear in linears.items():
                weight = weight_of(linear).detach()
                keep = pattern.together(weight.float().abs())
                counts.append(put(model, name, weight * keep))
                bar.advance(1, name)
        tell(ctx, counts)
        return model
