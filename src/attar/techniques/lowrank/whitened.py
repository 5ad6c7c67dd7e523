"""Replace every linear by two thin ones, the nearest in what they answer to real inputs."""

from __future__ import annotations

from attar.calibrate.install import install_factors
from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.walk import BlockView, tell_errors, walk
from attar.core.context import Context
from attar.core.step import Step
from attar.core.traits import FLOAT, LOWRANK, MASKED
from attar.models.model import Model, weight_of
from attar.ops.factor import whitened
from attar.techniques.lowrank._rank import Ranks, tell


class Whitened(Ranks, Calibrated, Step, kind="lowrank/whitened"):
    """Truncation-aware decomposition (SVD-LLM, arXiv 2403.07378), exact for the inputs' gram.

    Block by block, each fed by the blocks already factorized.
    """

    needs = frozenset({FLOAT})
    removes = frozenset({MASKED})
    adds = frozenset({LOWRANK})
    forbids = frozenset({LOWRANK})
    promises = frozenset({"changed", "smaller"})

    def apply(self, model: Model, ctx: Context) -> Model:
        """Walk the blocks; factorize the linears of each."""

        def visit(view: BlockView) -> list[float]:
            errors: list[float] = []
            for names, gram in view.groups():
                mean = gram.mean
                for name in names:
                    weight = weight_of(view.linears[name])
                    factors = whitened(weight, mean, self.rank(weight))
                    install_factors(model, name, factors)
                    errors.append(factors.error)
            return errors

        batches = calibration(self, model, ctx)
        errors = walk(model, batches, self.scope, ctx, visit, "whitened")
        tell_errors(ctx, errors)
        tell(ctx, [error for block in errors for error in block])
        return model
