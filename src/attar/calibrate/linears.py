"""Changing linears one at a time, where no data has to flow through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from attar.calibrate.kept import KeptBlocks
from attar.core.context import Context
from attar.core.scope import Scope
from attar.models.mapped import mapped, release, trim
from attar.models.model import Model

F = TypeVar("F")


def each_linear(
    model: Model, scope: Scope, ctx: Context, change: Callable[[str], F], label: str = "rounding"
) -> list[F]:
    """Change every linear in scope, by its name; what was found of each, plain data, is returned.

    Block by block: one that is done is kept in the step's scratch folder and mapped from there, so
    a model larger than memory is changed too, and a step that was killed goes on after the last.
    """
    names = list(model.linears(scope))
    blocks = [] if model.family.towers else list(model.blocks)
    weights = mapped(blocks)
    kept = KeptBlocks(None if ctx.scratch is None else ctx.scratch / "blocks")
    found: dict[str, F] = {}
    with ctx.progress.bar(label, len(names)) as bar:
        for index, block in enumerate(blocks):
            prefix = f"{model.blocks_name}.{index}."
            inside = [name for name in names if name.startswith(prefix)]
            if not inside:
                continue
            before = kept.restore(index, block)
            if before is None:
                own = {name: change(name) for name in inside}
                kept.keep(index, block, own)
            else:
                (own,) = before
            found |= own
            release(weights[index])
            trim()
            bar.advance(len(inside), f"block {index + 1} of {len(blocks)}")
        for name in names:
            if name not in found:  # outside the blocks
                found[name] = change(name)
                bar.advance(1, name)
    return [found[name] for name in names]
