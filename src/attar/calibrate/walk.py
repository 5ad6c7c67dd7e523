"""One walk over the blocks: every calibrated method is a visitor of it.

At each block the visitor is handed the block and the hidden states that reach it through the
blocks already changed. One block runs at a time, so its statistics alone are in memory. A block
that is done is kept in the step's scratch folder, where a walk that was killed goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from attar.calibrate.calls import Call, record_calls
from attar.calibrate.kept import KeptBlocks
from attar.calibrate.paused import Paused, halt
from attar.calibrate.states import States, place
from attar.core.context import Context
from attar.core.scope import Scope
from attar.errors import UserError
from attar.models.mapped import mapped, release, trim
from attar.models.model import Model, inference
from attar.ops.activations import Peaks, Range
from attar.ops.gram import Energy, Gram

S = TypeVar("S", Gram, Energy, Peaks, Range)
F = TypeVar("F")


@dataclass
class BlockView:
    """One block of the walk.

    `inputs`: hidden states [batch, length, hidden] for each batch, from the blocks before.
    `masks`: [batch, length], True where a token is real, for each batch.
    `linears`: those in scope, by their name within the model.
    `sharing`: linears that are given the same inputs, by kind of block, known from earlier ones.
    `outputs`: what the block made of the inputs, once `groups` has come to its end.
    `targets`: what the original's block makes of the original's own hidden states, where the
    walk was asked for it.
    `statistics`: linears that are given the same inputs, and the statistic of these that the walk
    was asked for.
    `frugal`: not all batches may be inside the block at a time. `exact`: hidden states are given
    to the block in float32.
    """

    index: int
    model: Model
    linears: dict[str, nn.Module]
    inputs: States
    masks: list[Tensor]
    calls: list[Call]
    precision: str
    sharing: dict[Any, list[list[str]]]
    outputs: list[Tensor] | None = None
    targets: Sequence[Tensor] | None = None
    statistics: Sequence[tuple[list[str], Any]] = ()
    frugal: bool = False
    exact: bool = False

    def run(self) -> Iterator[Tensor]:
        """The block's outputs, batch by batch."""
        for index in range(len(self.inputs)):
            with inference(self.model.device, self.precision):
                output = self.forward(index)
            yield output

    def forward(self, index: int) -> Tensor:
        """The block's output for one batch, with gradients where they are enabled."""
        hidden, call = self.inputs[index], self.calls[index]
        hidden = hidden.float() if self.exact else hidden
        output = self.model.blocks[self.index](hidden, *call.args, **call.kwargs)
        return output[0] if isinstance(output, tuple) else output

    def groups(self, statistic: type[S] = Gram) -> Iterator[tuple[list[str], S]]:
        """Linears that are given the same inputs, and a statistic of these, in their order.

        Every batch waits right before the linears that are yielded, and goes on through whatever
        stands in their place then: what comes after them is given the inputs that it will have.
        Where the view is frugal, batches come one by one, each time from the block's start. A
        linear that no batch reaches is not yielded.
        """
        together, done = self._together(), set[str]()
        halting = self._halting([names[0] for names in together.values()], done)
        with halting, ExitStack() as stack:
            batches = None if self.frugal else [self._enter(stack, i) for i in self._indices]
            while (found := self._next(batches, statistic)) is not None:
                done.add(found[0])
                yield together[found[0]], found[1]
        if batches is not None:
            self.outputs = [cast("Tensor", batch.output) for batch in batches]

    def watched(self, statistic: type[S]) -> Iterator[Tensor]:
        """The block's outputs as it is, batch by batch, on the way to `statistics`."""
        together, found = self._together(), dict[str, S]()
        arrived: list[tuple[str, Tensor]] = []

        def noting(name: str) -> Callable[..., None]:
            return lambda _, inputs: arrived.append((name, inputs[0]))

        with ExitStack() as stack:
            for name in together:
                handle = self.linears[name].register_forward_pre_hook(noting(name))
                stack.callback(handle.remove)
            for output, mask in zip(self.run(), self.masks, strict=True):
                for name, inputs in arrived:
                    if name not in found:
                        found[name] = statistic(inputs.shape[-1], inputs.device)
                    found[name].add(inputs if mask.all() else inputs[mask])
                arrived.clear()
                yield output
        self.statistics = [(together[name], each) for name, each in found.items()]

    @property
    def _indices(self) -> range:
        return range(len(self.inputs))

    def _enter(self, stack: ExitStack, index: int) -> Paused:
        """A batch at the block's start, which leaves it with the stack at the latest."""
        batch = Paused(partial(self.forward, index))
        stack.callback(batch.give_up)
        return batch

    def _next(self, batches: list[Paused] | None, statistic: type[S]) -> tuple[str, S] | None:
        """Send every batch to its next halt; where that is, and the statistic of what arrived."""
        reached, found = "", None
        for index, mask in enumerate(self.masks):
            with ExitStack() as stack:
                batch = self._enter(stack, index) if batches is None else batches[index]
                with inference(self.model.device, self.precision):
                    at = batch.advance()
                if at is not None:
                    reached, inputs = at
                    found = found or statistic(inputs.shape[-1], inputs.device)
                    found.add(inputs if mask.all() else inputs[mask])
        return None if found is None else (reached, found)

    @contextmanager
    def _halting(self, names: list[str], done: set[str]) -> Iterator[None]:
        """Let batches halt before these linears, as long as they are not among those done."""

        def halting(name: str) -> Callable[[Tensor], Tensor]:
            def forward(inputs: Tensor) -> Tensor:
                if name not in done:
                    halt(name, inputs)
                linear = self.model.module.get_submodule(name)
                return type(linear).forward(linear, inputs)

            return forward

        for name in names:
            self.linears[name].forward = halting(name)
        try:
            yield
        finally:
            for name in names:
                del self.linears[name].forward

    def _together(self) -> dict[str, list[str]]:
        """The names of linears that are given the same tensor, under the first of them."""
        prefix = f"{self.model.blocks_name}.{self.index}."
        inner = tuple(name.removeprefix(prefix) for name in self.linears)
        kind = (type(self.model.blocks[self.index]), inner)
        if kind not in self.sharing:
            self.sharing[kind] = self._watch(prefix)
        groups = [[prefix + name for name in names] for names in self.sharing[kind]]
        return {names[0]: names for names in groups}

    def _watch(self, prefix: str) -> list[list[str]]:
        """Run one batch, to see which linears are given the same tensor."""
        arrived: list[tuple[Tensor, list[str]]] = []

        def hook(name: str) -> Callable[..., None]:
            def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                for tensor, names in arrived:
                    if tensor is inputs[0]:
                        names.append(name)
                        return
                arrived.append((inputs[0], [name]))

            return note

        handles = [
            linear.register_forward_pre_hook(hook(name.removeprefix(prefix)))
            for name, linear in self.linears.items()
        ]
        try:
            next(self.run())
        finally:
            for handle in handles:
                handle.remove()
        return [names for _, names in arrived]


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
    calls, first = record_calls(model, batches, ctx.precision)
    folder = place(first, ctx)
    inputs = States(first, folder and folder / "0")
    del first  # of which the next blocks have no need
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
    outside = [name for name in names if not name.startswith(f"{model.blocks_name}.")]
    if outside:
        raise UserError(
            f"{outside[0]} lies outside the blocks, which this step goes through one by one. Leave "
            "it out of the scope, as `linears` does, or take a step that needs no data for it"
        )
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
        calls, inputs = record_calls(model, batches, precision)
        self._views = [
            BlockView(index, model, {}, States(()), [], calls[index], precision, {})
            for index in range(len(model.blocks))
        ]
        self._hidden, self._next = States(inputs), 0

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
