"""How much of each linear is kept, where a table says which of them the answers need most."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from attar.calibrate.table import Part, Table, read_table, unread
from attar.core.context import Context
from attar.core.scope import ModuleFact, Scope
from attar.core.step import FileRef
from attar.ops.allocate import losses_between, share_out

_STEPS = 64  # from one value that was tried to the next


class Shares(BaseModel):
    """A table of `attar sensitivity` that shares out a step's own setting, mixed into the step.

    `setting` is its name; what it is set to becomes the average.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    setting: ClassVar[str]
    if TYPE_CHECKING:
        kind: ClassVar[str]
        scope: Scope  # the step's own

    sensitivity: FileRef | None = Field(
        None,
        description="a table of `attar sensitivity` that tried this step with several values, to "
        "take less from parts that the answers need more; the value set is the average then",
    )

    @abstractmethod
    def asked(self) -> float:
        """What the setting is set to."""

    @abstractmethod
    def kept(self, value: float) -> float:
        """The share of the weights that stay, by the setting's value."""

    def left(self, fact: ModuleFact, share: float) -> float:
        """How many weights a linear has left of which such a share is to stay."""
        return share * prod(fact.shape)

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether the table is of this model, and what was tried lies around the average."""
        if self.sensitivity is not None:
            yield from unread(self.sensitivity, lambda: self.shares(modules))

    def shares(self, modules: Sequence[ModuleFact], ctx: Context | None = None) -> dict[str, float]:
        """The share of the weights that stay, for every linear in scope.

        By the table they are nearly as many in all as with the average everywhere, and no more.
        Linears outside the blocks have the average. Told in the report where there is one. Raises
        OSError or ValueError where the table will not do.
        """
        chosen, average = set(self.scope.select(modules)), self.kept(self.asked())
        facts = {fact.name: fact for fact in modules if fact.linear and fact.name in chosen}
        found = dict.fromkeys(facts, average)
        if self.sensitivity is None:
            return found
        table = read_table(self.sensitivity, modules, facts)
        for part, share in zip(table.parts, self._by_part(table, facts, average), strict=True):
            found |= dict.fromkeys(part.names, share)
            if ctx is not None:
                ctx.point(f"block share kept, {part.name}", part.block, share)
        return found

    def _by_part(
        self, table: Table, facts: Mapping[str, ModuleFact], average: float
    ) -> list[float]:
        tried = table.tried(self.kind, self.setting)
        if not min(tried) <= self.asked() <= max(tried):
            raise ValueError(
                f"has {self.kind} with {self.setting} from {min(tried):g} to {max(tried):g}, and "
                f"{self.asked():g} is asked for. Measure with less and with more than that"
            )
        order = sorted(tried, key=self.kept)
        kept = [self.kept(value) for value in order]
        steps = [step / _STEPS for step in range(_STEPS)]
        finer = [low + (high - low) * step for low, high in pairwise(kept) for step in steps]
        shares = [*finer, kept[-1]]

        def left(part: Part, share: float) -> float:
            return sum(self.left(facts[name], share) for name in part.names)

        costs = [[left(part, share) for share in shares] for part in table.parts]
        losses = [
            losses_between(
                [left(part, share) for share in kept], [tried[value][at] for value in order], own
            )
            for at, (part, own) in enumerate(zip(table.parts, costs, strict=True))
        ]
        budget = sum(left(part, average) for part in table.parts)
        return [shares[place] for place in share_out(losses, costs, budget)]
