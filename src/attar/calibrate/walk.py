"""One walk over the blocks: every calibrated method is a visitor of it.

At each block the visitor is handed the block and the hidden states that reach it through the
blocks already changed. One block runs at a time, so its statistics alone are in memory. A block
that is done is kept in the step's scratch folder, where a walk that was killed goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from attar.calibrate.calls import record_calls
from attar.calibrate.kept import KeptBlocks
from attar.calibrate.states import States, place
from attar.calibrate.view import BlockView, S
from attar.core.context import Context
from attar.core.scope import Scope, outside_blocks
from attar.errors import UserError
from attar.models.mapped import mapped, release, trim
from attar.models.model import Model

F = TypeVar("F")


def walk(
    model: Model,
    batches: Sequence[Any],
    scope: Scope,
    ctx: Context,
    visit: Callable[[BlockView], F],
    label: str = "blocks",
    original: Model | None = None,
    statistic: type[S] | None = None,
) -> list[F]:
    """Visit every block in order; `visit` may change the block, which then feeds the next.

    What `visit` found at each block, plain data, is returned. With `original`, a model of as
    many blocks, or this one before it is changed, every view has the `targets` that its blocks
    make. With `statistic` every view has `statistics` of its linears' inputs, and blocks feed
    each other as they were: one pass through each is all that takes.
    """
    names = _inside(model, scope)
    weights = mapped(model.blocks)
    release([span for spans in weights for span in spans])
    sample: list[Tensor] = []
    record_calls(model, batches[:1], ctx.precision, sample.append)
    folder = place(sample.pop(), len(batches), ctx)
    inputs = States((), folder and folder / "0")
    calls = record_calls(model, batches, ctx.precision, inputs.append)
    masks = [batch.attention_mask.to(model.device).bool() for batch in batches]
    sharing: dict[Any, list[list[str]]] = {}
    targets = None if original is None else _Original(original, batches, ctx.precision, folder)
    kept = KeptBlocks(None if ctx.scratch is None else ctx.scratch / "blocks")
    found: list[F] = []
    with ctx.progress.bar(label, len(model.blocks)) as bar:
        for index, block in enumerate(model.blocks):
            prefix = f"{model.blocks_name}.{index}."
            linears = {name: names.pop(name) for name in list(names) if name.startswith(prefix)}
            view = BlockView(
                index, model, linears, inputs, masks, calls[index], ctx.precision, sharing
            )
            view.frugal = folder is not None
            view.targets = targets and targets.advance()
            ahead = folder and folder / str(index + 1)
            if statistic is not None:
                inputs = States(view.watched(statistic), ahead)
            before = kept.restore(index, block)
            found.append(visit(view) if before is None else before[0])
            if statistic is None and index + 1 < len(model.blocks):
                inputs = States(view.run() if view.outputs is None else view.outputs, ahead)
            view.inputs.drop()
            if before is None:
                kept.keep(index, block, found[-1])
            release(weights[index])
            trim()
            bar.advance(1, f"block {index + 1} of {len(model.blocks)}")
    if folder is not None:
        shutil.rmtree(folder)
    return found


def _inside(model: Model, scope: Scope) -> dict[str, nn.Module]:
    """The linears in scope, all of which must be inside the blocks."""
    names = model.linears(scope)
    for problem in outside_blocks(model.facts(), names):
        raise UserError(problem)
    return names


def tell_errors(ctx: Context, errors: Sequence[Sequence[float]]) -> None:
    """Put the mean relative error of each block's linears into the report."""
    for index, found in enumerate(errors):
        if found:
            ctx.point("block error", index, sum(found) / len(found))


class _Original:
    """The original's hidden states, moved on block by block."""

    def __init__(
        self, model: Model, batches: Sequence[Any], precision: str, folder: Path | None
    ) -> None:
        self._folder = folder
        self._weights = mapped(model.blocks)
        release([span for spans in self._weights for span in spans])
        self._hidden, self._next = States((), folder and folder / "own"), 0
        calls = record_calls(model, batches, precision, self._hidden.append)
        self._views = [
            BlockView(index, model, {}, States(()), [], calls[index], precision, {})
            for index in range(len(model.blocks))
        ]

    def advance(self) -> Sequence[Tensor]:
        """What the next block makes of the hidden states that the one before made."""
        view, before = self._views[self._next], self._hidden
        view.inputs = before
        self._hidden = States(view.run(), self._folder and self._folder / f"own-{self._next}")
        view.inputs = States(())
        before.drop()
        release(self._weights[self._next])
        self._next += 1
        return self._hidden
