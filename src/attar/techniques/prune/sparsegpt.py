"""Set weights to zero column by column, the rest making up for each of them (SparseGPT)."""

from __future__ import annotations

from pydantic import Field

from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.view import BlockView
from attar.calibrate.walk import walk
from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.step import TASKS, Step
from attar.core.traits import FLOAT, MASKED
from attar.models.model import Model, weight_of
from attar.ops.sparse import sparsegpt_each
from attar.techniques.prune._sparsity import SharedSparsity, Zeros, put, tell


class SparseGpt(SharedSparsity, Calibrated, Step, kind="prune/sparsegpt"):
    """SparseGPT (arXiv 2301.00774), block by block, each fed by the blocks already pruned."""

    version = 3
    needs = frozenset({FLOAT})
    adds = frozenset({MASKED})
    tasks = TASKS
    promises = frozenset({"changed"})
    walked = True

    refits: int = Field(
        8, ge=0, description="steps that move the weights which stay to their best after that"
    )
    scope: Scope = Field(Scope.linears(), description="the linears to prune")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Walk the blocks; prune the linears of each."""
        patterns = self.patterns(model, ctx)

        def visit(view: BlockView) -> list[Zeros]:
            counts: list[Zeros] = []
            for names, gram in view.groups():
                mean = view.steady(names, gram.mean)
                for pattern in dict.fromkeys(patterns[name] for name in names):
                    alike = [name for name in names if patterns[name] == pattern]
                    weights = [weight_of(view.linears[name]) for name in alike]
                    found = sparsegpt_each(weights, mean, pattern, self.refits)
                    counts += [put(model, *made) for made in zip(alike, found, strict=True)]
            return counts

        batches = calibration(self, model, ctx)
        blocks = walk(model, batches, self.scope, ctx, visit, "SparseGPT")
        tell(ctx, [count for block in blocks for count in block])
        return model
