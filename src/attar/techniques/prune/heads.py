"""Take out attention heads: the least active, least missed, or best stood for by others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from attar.core.scope import ModuleFact, Scope
from attar.models.axes import ordinary
from attar.models.model import Model
from attar.models.uneven import QUERIES, keep_groups
from attar.techniques.prune._units import Units


class Heads(Units, kind="prune/heads"):
    """Heads of keys and values, each with all the query heads that share it, go whole.

    By `activation` (Minitron, arXiv 2407.14679), by `taylor` (Michel et al. 2019, arXiv
    1905.10650), or by `similarity`: what no linear map of another head's output makes. The
    result is an ordinary model where all blocks keep as many and the architecture can say so;
    elsewhere its attention is uneven, which GPT-2 and Phi-3 cannot run.
    """

    role, unit, ending = "attention", "heads", QUERIES

    scope: Scope = Field(Scope.of("attention"), description="the blocks' attention to cut")

    def units_of(self, end: ModuleFact) -> int:
        return end.heads.keys if end.heads is not None else 1

    def cut(self, model: Model, block: int, kept: list[int]) -> None:
        keep_groups(model, block, kept)

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether heads can go at all, and from these blocks alone."""
        yield from super().check(modules)
        ends = self._ends(modules)
        if not all(end.heads is None or end.heads.own for end in ends) and (
            self.share == "uneven" or not ordinary(self.reshape(modules), self.ending)
        ):
            yield (
                "this architecture splits its attention where the config says, so all blocks "
                "have as many heads, and as many as the config can say. Take them out of every "
                "block evenly; where the heads make up the hidden size, by prune/width with "
                "`heads` and `hidden`"
            )

    def _nothing(self, units: int) -> str:
        more = "" if units > 1 else "; with one alone, prune/width takes out query heads"
        return f"{super()._nothing(units)}{more}"
