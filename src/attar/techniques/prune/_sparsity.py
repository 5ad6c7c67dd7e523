"""How many weights of each linear go: settings that every unstructured pruning shares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from attar.calibrate.shares import Shares
from attar.core.context import Context
from attar.core.scope import ModuleFact, Scope
from attar.errors import UserError
from attar.models.masks import mark
from attar.models.model import Model, set_weight, weight_of
from attar.ops.sparse import Pattern

Zeros = tuple[int, int]  # how many there are, of how many weights
_DEFAULT = 0.5
_PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*)")


class Sparsity(BaseModel):
    """A share of the weights, or a pattern such as 2:4, mixed into a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    if TYPE_CHECKING:
        scope: Scope  # the step's own

    sparsity: float | None = Field(
        None, gt=0, lt=1, description="the share of each linear's weights that goes; 0.5 by default"
    )
    pattern: str | None = Field(
        None, description="instead: `2:4` keeps 2 of every 4 inputs in a row, and so on"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.pattern is None:
            return self
        if self.sparsity is not None:
            raise ValueError("`sparsity` and `pattern` both say how many weights go; keep one")
        match = _PATTERN.fullmatch(self.pattern)
        if match is None or not int(match[1]) < int(match[2]) <= 128 or 128 % int(match[2]):
            raise ValueError(
                f"{self.pattern!r} is no pattern; write how many inputs stay of how many, such as "
                "2:4, 4:8 or 1:4 (the second number divides 128)"
            )
        return self

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether there is a linear to prune."""
        chosen = set(self.scope.select(modules))
        if chosen and not any(fact.linear and fact.name in chosen for fact in modules):
            yield "its scope names no linear. Add `linears`"

    def wanted(self) -> Pattern:
        """The pattern in numbers."""
        if self.pattern is None:
            return Pattern(_DEFAULT if self.sparsity is None else self.sparsity)
        kept, run = (int(part) for part in self.pattern.split(":"))
        return Pattern(1 - kept / run, kept, run)


class SharedSparsity(Shares, Sparsity):
    """A share of the weights that a table of sensitivities may share out, mixed into a step."""

    setting = "sparsity"

    @model_validator(mode="after")
    def _no_pattern(self) -> Self:
        if self.pattern is not None and self.sensitivity is not None:
            raise ValueError(
                f"{self.pattern} keeps as many of every run, so `sensitivity` has nothing to share "
                "out. Set `sparsity` instead of `pattern`, or leave `sensitivity` out"
            )
        return self

    def asked(self) -> float:
        """The share that goes, on average."""
        return self.wanted().sparsity

    def kept(self, value: float) -> float:
        """What does not go."""
        return 1 - value

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether there is a linear to prune, and the table is of those there are."""
        yield from Sparsity.check(self, modules)
        yield from Shares.check(self, modules)

    def patterns(self, model: Model, ctx: Context) -> dict[str, Pattern]:
        """How many weights of each linear in scope stay, by the table where there is one."""
        if self.sensitivity is None:
            return dict.fromkeys(model.linears(self.scope), self.wanted())
        shares = self.shares(model.facts(), ctx)
        return {name: Pattern(1 - share) for name, share in shares.items()}


def check_ties(model: Model, names: Iterable[str]) -> None:
    """Raise UserError where zeros would come into the embeddings as well."""
    modules = model.module.modules()
    tables = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
    for name in names:
        if id(weight_of(model.module.get_submodule(name))) in tables:
            raise UserError(
                f"{name} has the embeddings' own weight, which would be pruned with it. Leave it "
                f"out of the scope: ['linears', '!{name}'], say"
            )


def put(model: Model, name: str, weight: Tensor) -> Zeros:
    """Put a weight with zeros into the linear called `name`, and count them."""
    linear = model.module.get_submodule(name)
    set_weight(linear, weight)
    mark(linear)
    return int((weight == 0).sum()), weight.numel()


def tell(ctx: Context, counts: list[Zeros]) -> None:
    """Say in the report how much is zero, and what that is worth."""
    zeros, there = (sum(part) for part in zip(*counts, strict=True))
    ctx.note("zeros", f"{zeros / there:.2%} of {there:,} weights".replace(",", " "))
    ctx.note("saved as", "dense weights: zeros alone save no bytes and no time")
