"""How thin the factors are: what every factorization shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attar.calibrate.install import install_factors
from attar.calibrate.shares import Shares
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

    def ranks(self, modules: Sequence[ModuleFact]) -> dict[str, int]:
        """The rank of each linear in scope."""
        chosen = set(self.scope.select(modules))
        linears = [fact for fact in modules if fact.linear and fact.name in chosen]
        return {fact.name: _rank(fact, self.keep) for fact in linears}

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether the scope holds linears only."""
        yield from no_linears(self.scope, modules)

    def reshape(self, modules: Sequence[ModuleFact]) -> Sequence[ModuleFact]:
        """Two thin linears where there was one."""
        return _thin(self.scope, modules, self.ranks(modules))


class SharedRanks(Shares, Ranks):
    """Ranks that a table of sensitivities may share out, mixed into a step."""

    setting = "keep"

    def asked(self) -> float:
        """The share to keep, on average."""
        return self.keep

    def kept(self, value: float) -> float:
        """The very share."""
        return value

    def left(self, fact: ModuleFact, share: float) -> float:
        """How many weights the factors hold."""
        return _rank(fact, share) * sum(fact.shape)

    def ranks(self, modules: Sequence[ModuleFact], ctx: Context | None = None) -> dict[str, int]:
        """The rank of each linear in scope, by the table where there is one."""
        facts = {fact.name: fact for fact in modules}
        shares = self.shares(modules, ctx)
        return {name: _rank(facts[name], share) for name, share in shares.items()}

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether the scope holds linears only, and the table is of them."""
        yield from Ranks.check(self, modules)
        yield from Shares.check(self, modules)

    def reshape(self, modules: Sequence[ModuleFact]) -> Sequence[ModuleFact]:
        """Two thin linears where there was one; as they are where the table will not do."""
        try:
            ranks = self.ranks(modules)
        except (OSError, ValueError):  # `check` has said what is wrong with the table
            return modules
        return _thin(self.scope, modules, ranks)


def _rank(fact: ModuleFact, keep: float) -> int:
    rows, width = fact.shape
    return rank_for(rows, width, keep)


def _thin(
    scope: Scope, modules: Sequence[ModuleFact], ranks: Mapping[str, int]
) -> Sequence[ModuleFact]:
    def parts(fact: ModuleFact) -> Parts:
        (rows, width), rank = fact.shape, ranks[fact.name]
        return {"down": (rank, width), "up": (rows, rank)}

    return split_up(scope, modules, parts)


def no_linears(scope: Scope, modules: Sequence[ModuleFact]) -> Iterable[str]:
    """What to say of the first in scope that is no linear."""
    chosen = set(scope.select(modules))
    others = [fact.name for fact in modules if fact.name in chosen and not fact.linear]
    if others:
        yield f"{others[0]} is no linear. Narrow the scope, to `linears` for example"


def split_up(
    scope: Scope, modules: Sequence[ModuleFact], parts: Callable[[ModuleFact], Parts]
) -> Sequence[ModuleFact]:
    """The modules with each linear in scope replaced by its parts."""
    chosen = set(scope.select(modules))
    found: list[ModuleFact] = []
    for fact in modules:
        if fact.name not in chosen or not fact.linear:
            found.append(fact)
            continue
        for name, shape in parts(fact).items():
            found.append(replace(fact, name=f"{fact.name}.{name}", shape=shape, axes=("",)))
    return found


def walk_and_factorize(
    model: Model,
    batches: list[Batch],
    scope: Scope,
    ctx: Context,
    ranks: Mapping[str, int],
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
                factors = factored(weight, ranks[name], root, felt)
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
