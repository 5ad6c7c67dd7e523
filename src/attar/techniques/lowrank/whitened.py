"""Replace every linear by two thin ones, the nearest in what they answer to real inputs."""

from __future__ import annotations

from attar.calibrate.rows import Calibrated, calibration
from attar.core.context import Context
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, LOWRANK, MASKED
from attar.models.model import Model
from attar.techniques.lowrank._rank import SharedRanks, walk_and_factorize


class Whitened(SharedRanks, Calibrated, Step, kind="lowrank/whitened"):
    """Truncation-aware decomposition (SVD-LLM, arXiv 2403.07378), exact for the inputs' gram.

    Block by block, each fed by the blocks already factorized.
    """

    needs = frozenset({FLOAT})
    removes = frozenset({MASKED})
    adds = frozenset({LOWRANK})
    forbids = frozenset({LOWRANK})
    tasks = TASKS
    promises = frozenset({"changed", "smaller"})
    walked = True

    def apply(self, model: Model, ctx: Context) -> Model:
        """Walk the blocks; factorize the linears of each."""
        ranks = self.ranks(model.facts(), ctx)
        walk_and_factorize(model, calibration(self, model, ctx), self.scope, ctx, ranks)
        return model
