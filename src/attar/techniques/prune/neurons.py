"""Take out feed-forward neurons: the least active, least missed, or best stood for by others."""

from __future__ import annotations

from pydantic import Field

from attar.core.scope import ModuleFact, Scope
from attar.models.model import Model
from attar.models.uneven import NEURONS, keep_neurons
from attar.techniques.prune._sizes import nearest
from attar.techniques.prune._units import Units


class Neurons(Units, kind="prune/neurons"):
    """By `activation` (Minitron, arXiv 2407.14679), by `taylor` (Molchanov et al. 2017, arXiv
    1611.06440), or by `similarity` (Srinivas and Babu 2015, arXiv 1507.06149).

    The result is an ordinary model where all blocks keep as many; elsewhere it is uneven.
    """

    role, unit, ending = "mlp", "neurons", NEURONS

    multiple: int = Field(32, ge=1, description="every block keeps a multiple of so many neurons")
    scope: Scope = Field(Scope.of("mlp"), description="the blocks' feed-forward parts to cut")

    def lot(self) -> int:
        return self.multiple

    def units_of(self, end: ModuleFact) -> int:
        return end.shape[1]

    def cut(self, model: Model, block: int, kept: list[int]) -> None:
        keep_neurons(model, block, kept)

    def _count(self, units: int) -> int:
        return nearest(self.fraction * units, self.multiple, units)

    def _nothing(self, units: int) -> str:
        return f"{super()._nothing(units)}, or lower `multiple`"
