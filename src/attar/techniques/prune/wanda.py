"""Set weights to zero by their size times that of the inputs they meet (Wanda)."""

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
from attar.ops.gram import Energy
from attar.ops.sparse import wanda_scores
from attar.techniques.prune._sparsity import SharedSparsity, Zeros, put, tell


class Wanda(SharedSparsity, Calibrated, Step, kind="prune/wanda"):
    """Wanda (arXiv 2306.11695), row by row, by the inputs that the model had before pruning.

    Nothing here makes up for what earlier blocks have lost, so what they lost should not sway
    which weights go: fed by pruned blocks, as the paper has it, it does worse (docs/log.md).
    """

    version = 2
    needs = frozenset({FLOAT})
    adds = frozenset({MASKED})
    tasks = TASKS
    promises = frozenset({"changed"})
    walked = True

    scope: Scope = Field(Scope.linears(), description="the linears to prune")

    def apply(self, model: Model, ctx: Context) -> Model:
        """Walk the blocks; prune the linears of each."""
        patterns = self.patterns(model, ctx)

        def visit(view: BlockView) -> list[Zeros]:
            counts: list[Zeros] = []
            for names, energy in view.statistics:
                for name in names:
                    weight = weight_of(view.linears[name]).detach()
                    keep = patterns[name].by_row(wanda_scores(weight, energy.mean))
                    counts.append(put(model, name, weight * keep))
            return counts

        batches = calibration(self, model, ctx)
        blocks = walk(model, batches, self.scope, ctx, visit, "Wanda", statistic=Energy)
        tell(ctx, [count for block in blocks for count in block])
        return model
