"""Set the smallest weights of every linear to zero; no data needed."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field
from torch import nn

from attar.calibrate.linears import each_linear
from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, MASKED
from attar.errors import UserError
from attar.models.model import Model, weight_of
from attar.techniques.prune._sparsity import SharedSparsity, Zeros, put, tell


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
        _check_ties(model, patterns)

        def change(name: str) -> Zeros:
            weight = weight_of(model.module.get_submodule(name)).detach()
            return put(model, name, weight * patterns[name].together(weight.float().abs()))

        tell(ctx, each_linear(model, self.scope, ctx, change, "pruning"))
        return model


def _check_ties(model: Model, names: Iterable[str]) -> None:
    """Raise UserError where zeros would come into the embeddings as well."""
    modules = model.module.modules()
    tables = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
    for name in names:
        if id(weight_of(model.module.get_submodule(name))) in tables:
            raise UserError(
                f"{name} has the embeddings' own weight, which would be pruned with it. Leave it "
                f"out of the scope: ['linears', '!{name}'], say"
            )
