"""How thin the factors are: what every factorization shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attar.calibrate.install import install_factors
from attar.calibrate.view import BlockView
from attar.calibrate.walk import tell_errors, walk
from attar.core.context import Context
from attar.core.scope import ModuleFact, Scope
from attar.data.batches import Batch
from attar.models.model import Model, weight_of
from attar.ops.factor import factored, rank_for, root_of

Parts = dict[str, tuple[int, int]]  # the shape of each part, by its name


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
        yield from no_linears(self.scope, modules)

    def reshape(self, modules: Sequence[ModuleFact]) -> Sequence[ModuleFact]:
        """Two thin linears where there was one."""

        def parts(rows: int, width: int) -> Parts:
            rank = rank_for(rows, width, self.keep)
            return {"down": (rank, width), "up": (rows, rank)}

        return split_up(self.scope, modules, parts)


def no_linears(scope: Scope, modules: Sequence[ModuleFact]) -> Iterable[str]:
    """What to say of the first in scope that is no linear."""
    chosen = set(scope.select(modules))
    others = [fact.name for fact in modules if fact.name in chosen and not fact.linear]
    if others:
        yield f"{others[0]} is no linear. Narrow the scope, to `linears` for example"


def split_up(
    scope: Scope, modules: Sequence[ModuleFact], parts: Callable[[int, int], Parts]
) -> Sequence[ModuleFact]:
    """The modules with each in scope, of so many rows and so wide, replaced by its parts."""
    chosen = set(scope.select(modules))
    found: list[ModuleFact] = []
    for fact in modules:
        if fact.name not in chosen:
            found.append(fact)
            continue
        rows, width = fact.shape
        for name, shape in parts(rows, width).items():
            found.append(replace(fact, name=f"{fact.name}.{name}", shape=shape, axes=("",)))
    return found


def walk_and_factorize(
    model: Model,
    batches: list[Batch],
    scope: Scope,
    ctx: Context,
    rank: Callable[[str, Tensor], int],
    importance: Mapping[str, Tensor] | None = None,
) -> None:
    """Factorize the linears of each block, exact for what the blocks before it now give."""

    def visit(view: BlockView) -> list[float]:
        errors: list[float] = []
        for names, gram in view.groups():
            root = root_of(gram.mean)
            for name in names:
                weight = weight_of(view.linears[name])
                felt = None if importance is None else importance[name]
                factors = factored(weight, rank(name, weight), root, felt)
                install_factors(model, name, factors)
                errors.append(factors.error)
        return errors

    errors = walk(model, batches, scope, ctx, visit, "factorizing")
    tell_errors(ctx, errors)
    tell(ctx, [error for block in errors for error in block])


def tell(ctx: Context, errors: list[float]) -> None:
    """Say in the report how much of the outputs was lost, on average."""
    if errors:
        ctx.note("mean relative squared error", round(sum(errors) / len(errors), 5))
