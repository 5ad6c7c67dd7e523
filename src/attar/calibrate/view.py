"""One block of a walk: the linears in it, what reaches them, and what it puts out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from attar.calibrate.calls import Call
from attar.calibrate.paused import Paused, halt
from attar.calibrate.refusals import insist_finite
from attar.calibrate.states import States
from attar.models.mapped import trim
from attar.models.model import Model, inference
from attar.ops.activations import Inputs, Peaks, Range
from attar.ops.gram import Energy, Gram, damped

S = TypeVar("S", Gram, Energy, Inputs, Peaks, Range)
_BY_TOKEN = ("causal-lm", "masked-lm")  # tasks whose models answer for every token
_ADDED = 0.5  # of the mean energy
_HELD = 1 << 24  # bytes that wait in batches, after which the holes between them are given back


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
                trim()
                yield together[found[0]], found[1]
                del found
                trim()
        if batches is not None:
            self.outputs = [cast("Tensor", batch.output) for batch in batches]

    def steady(self, names: Sequence[str], gram: Tensor) -> Tensor:
        """The gram under which to round or prune these linears, given that of their inputs.

        Of what an attention's heads put out, in a model that answers for whole texts, half of its
        mean is added to its diagonal. Those are averages over many tokens, so that what is lost of
        them is alike all over a text and adds up in its answer, and on other texts more is lost
        where the gram is trusted to the last digit (docs/log.md).
        """
        if self.model.task in _BY_TOKEN or not names[0].endswith(f".{self.model.family.out}"):
            return gram
        return damped(gram, _ADDED)

    def watched(self, statistic: type[S]) -> Iterator[Tensor]:
        """The block's outputs as it is, batch by batch, on the way to `statistics`."""
        together, found = self._together(), dict[str, S]()
        yield from self._counting(together, statistic, found, lambda inputs, _: inputs[0])
        self.statistics = [(together[name], each) for name, each in found.items()]

    def results(self, names: Collection[str], statistic: type[S]) -> dict[str, S]:
        """A statistic of what each of these modules puts out, in the block as it is now.

        Nothing is run where no module is named. What the block puts out is found anew after it.
        """
        found = dict[str, S]()
        if names:
            for _ in self._counting(names, statistic, found, lambda _, outputs: outputs):
                self.outputs = None
        return found

    def _counting(
        self,
        names: Collection[str],
        statistic: type[S],
        found: dict[str, S],
        taken: Callable[[tuple[Tensor, ...], Tensor], Tensor],
    ) -> Iterator[Tensor]:
        """The block's outputs, while `found` counts what is `taken` of inputs and outputs."""
        arrived: list[tuple[str, Tensor]] = []

        def noting(name: str) -> Callable[..., None]:
            return lambda _, inputs, outputs: arrived.append((name, taken(inputs, outputs)))

        with ExitStack() as stack:
            for name in names:
                module = self.model.module.get_submodule(name)
                stack.callback(module.register_forward_hook(noting(name)).remove)
            for output, mask in zip(self.run(), self.masks, strict=True):
                for name, tensor in arrived:
                    found[name] = _with(found.get(name), statistic, name, tensor, mask)
                arrived.clear()
                yield output

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
        reached, found, held = "", None, 0
        for index, mask in enumerate(self.masks):
            with ExitStack() as stack:
                batch = self._enter(stack, index) if batches is None else batches[index]
                with inference(self.model.device, self.precision):
                    at = batch.advance()
                if at is not None:
                    reached, inputs = at
                    found = _with(found, statistic, reached, inputs, mask)
                    if (held := held + inputs.nbytes) > _HELD:
                        held = 0
                        trim()
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


def _with(found: S | None, statistic: type[S], name: str, states: Tensor, mask: Tensor) -> S:
    """A statistic, begun where there is none yet, with the real tokens of a batch."""
    found = found or statistic(states.shape[-1], states.device)
    real = states if mask.all() else states[mask]
    insist_finite({name: real})
    found.add(real)
    return found
