"""How thin the factors are: what every factorization shares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attar.core.context import Context
from attar.core.scope import ModuleFact, Scope
from attar.ops.factor import rank_for


class Ranks(BaseModel):
    """The share of the weights to keep, mixed into a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: float = Field(
        0.8, gt=0, lt=1, description="the share of each linear's weights that its factors hold"
    )
    scope: Scope = Field(Scope.linears(), description="the linears to factorize")

    def rank(self, weight: Tensor) -> int:
        """The rank of a weight's factors."""
        rows, width = weight.shape
        return rank_for(rows, width, self.keep)

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether the scope holds linears only."""
        chosen = set(self.scope.select(modules))
        others = [fact.name for fact in modules if fact.name in chosen and not fact.linear]
        if others:
            yield f"{others[0]} is no linear. Narrow the scope, to `linears` for example"

    def reshape(self, modules: Sequence[ModuleFact]) -> Sequence[ModuleFact]:
        """Two thin linears where there was one."""
        chosen = set(self.scope.select(modules))
        found: list[ModuleFact] = []
        for fact in modules:
            if fact.name not in chosen:
                found.append(fact)
                continue
            rows, width = fact.shape
            rank = rank_for(rows, width, self.keep)
            for name, shape in (("down", (rank, width)), ("up", (rows, rank))):
                found.append(replace(fact, name=f"{fact.name}.{name}", shape=shape, axes=("",)))
        return found


def tell(ctx: Context, errors: list[float]) -> None:
    """Say in the report how much of the outputs was lost, on average."""
    if errors:
        ctx.note("mean relative squared error", round(sum(errors) / len(errors), 5))
