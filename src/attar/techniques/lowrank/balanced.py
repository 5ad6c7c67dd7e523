"""Replace linears by thin ones, ranks shared out by what the answers lose over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pydantic import Field
from torch import Tensor

from attar.calibrate.gradients import answer_sensitivity, tokens_an_answer
from attar.calibrate.rows import Calibrated, calibration
from attar.calibrate.view import BlockView
from attar.calibrate.walk import walk
from attar.core.context import Context
from attar.core.scope import ModuleFact
from attar.core.step import Step
from attar.core.traits import FLOAT, LOWRANK, MASKED
from attar.data.batches import Batch
from attar.models.model import Model, weight_of
from attar.ops.allocate import share_out
from attar.ops.factor import ranks_below, root_of, spectrum
from attar.techniques.lowrank._rank import Ranks, walk_and_factorize


class Balanced(Ranks, Calibrated, Step, kind="lowrank/balanced"):
    """Factors exact for the inputs' gram and the answers' Fisher information, at one budget.

    An error of a linear's outputs costs the answers what the Fisher information of these outputs
    says (as in Kronecker-factored curvature, arXiv 1503.05671), so what every rank of every
    linear is worth is known in nats before any is cut. Then block by block, each fed by the
    blocks already factorized. The gradients pass through the whole model at once.
    """

    needs = frozenset({FLOAT})
    removes = frozenset({MASKED})
    adds = frozenset({LOWRANK})
    forbids = frozenset({LOWRANK})
    promises = frozenset({"changed", "smaller"})
    walked = True

    keep: float = Field(
        0.8, gt=0, lt=1, description="the share of all the linears' weights that factors hold"
    )
    measured: int = Field(16, ge=1, description="of these, sequences to take gradients of")

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether any ranks are that thin."""
        yield from super().check(modules)
        chosen = set(self.scope.select(modules))
        shapes = [fact.shape for fact in modules if fact.name in chosen and fact.linear]
        whole, least = sum(rows * width for rows, width in shapes), sum(map(sum, shapes))
        if least > self.keep * whole:
            yield (
                f"keep: {self.keep:g} is below what factors of rank 1 hold, {least / whole:.3f} of "
                "the weights"
            )

    def apply(self, model: Model, ctx: Context) -> Model:
        """Measure gradients and spectra, share out the ranks, and walk the blocks."""
        batches = calibration(self, model, ctx)
        few = batches[: -(-self.measured // self.batch)]
        felt = answer_sensitivity(model, few, list(model.linears(self.scope)), ctx)
        ranks, lost = self._ranks(model, batches, felt, ctx)
        lost *= tokens_an_answer(few, model.task)
        ctx.note("foreseen divergence", round(lost, 4))
        walk_and_factorize(model, batches, self.scope, ctx, ranks, felt)
        return model

    def _ranks(
        self, model: Model, batches: list[Batch], felt: dict[str, Tensor], ctx: Context
    ) -> tuple[dict[str, int], float]:
        """The rank of each linear, and what these cost the answers, in nats for each token."""

        def visit(view: BlockView) -> dict[str, tuple[int, int, list[float]]]:
            found: dict[str, tuple[int, int, list[float]]] = {}
            for names, gram in view.groups():
                root = root_of(gram.mean)
                for name in names:
                    weight = weight_of(view.linears[name])
                    rows, width = weight.shape
                    found[name] = rows, width, spectrum(weight, root, felt[name]).tolist()
            return found

        scratch = None if ctx.scratch is None else ctx.scratch / "spectra"
        apart = replace(ctx, scratch=scratch)  # factorizing walks through the same blocks
        blocks = walk(model, batches, self.scope, apart, visit, "spectra")
        measured = {name: found for block in blocks for name, found in block.items()}
        ranks = {name: ranks_below(rows, width) for name, (rows, width, _) in measured.items()}
        # half of what the answers feel of an error is what it costs them, in nats
        losses = [
            [sum(worth[rank:]) / 2 for rank in ranks[name]]
            for name, (_, _, worth) in measured.items()
        ]
        costs = [
            [float(rank * (rows + width)) for rank in ranks[name]]
            for name, (rows, width, _) in measured.items()
        ]
        budget = self.keep * sum(rows * width for rows, width, _ in measured.values())
        chosen = share_out(losses, costs, budget)
        lost = sum(loss[at] for loss, at in zip(losses, chosen, strict=True))
        return {name: ranks[name][at] for name, at in zip(measured, chosen, strict=True)}, lost
