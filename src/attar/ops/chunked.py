"""The loss over a large head, in chunks: all its logits are never in memory at once."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from attar.ops.divergence import IGNORED, Divergence, Found, log_probabilities, measured, toward
from attar.ops.sketch import Sample, Top

# Logits handled at once by what is not a matrix product: 4 MB stay in a processor's cache, 32 in
# a GPU's, where the dozen tensors of a whole chunk would be the most memory of a step.
_CACHED = {"cpu": 1 << 20, "cuda": 1 << 23}
_SLICE = 1 << 22  # weights of a linear head handled at once: 8 MB in bf16


@dataclass(frozen=True)
class Side:
    """One model at its head: what reads hidden states, and the states that it reads.

    head: [n, width] -> logits [n, classes]; hidden: [positions, width]; weights: the tensors
    inside `head` that want a gradient (none for a teacher). A head that is an `nn.Linear` takes
    less memory: beside the sum of its gradient no other tensor of its size is made.
    """

    head: Callable[[Tensor], Tensor]
    hidden: Tensor
    weights: Sequence[Tensor] = ()


Told = Side | Top | Sample  # what a teacher says: of every class, or what was kept of that


@dataclass(frozen=True)
class Mix:
    """What a position adds to the loss: weight x divergence + task_weight x cross-entropy.

    `share` is that of `divergence.measured`.
    """

    divergence: Divergence = "forward"
    temperature: float = 1.0
    weight: float = 0.0
    task_weight: float = 1.0
    share: float = 0.5


@dataclass(frozen=True)
class Losses:
    """What the chunks add up to, in nats; only `total` has a gradient.

    total: the mix over all positions, divided by their number, so that a position without a
    label adds its divergence alone; divergence: mean over all positions; task: mean
    cross-entropy over the positions with a label.
    """

    total: Tensor
    divergence: Tensor
    task: Tensor


def chunked(
    student: Side, teacher: Told | None, labels: Tensor, mix: Mix, chunk: int = 512
) -> Losses:
    """The mix of divergence and cross-entropy, its logits never in memory all at once.

    labels: [positions], IGNORED where there is none; chunk: positions whose logits exist at a
    time. The gradient is worked out chunk by chunk on the way forward, where the logits are at
    hand, so that the head is computed once and not again on the way back (Liger Kernel,
    arXiv:2410.10989, does the same). A head tied to the embedding gets its share of the
    gradient through `weights`. Without gradients enabled only values are computed.
    """
    wanted = [weight for weight in student.weights if weight.requires_grad]
    # Asked here: inside an autograd.Function gradients are always disabled.
    slopes = torch.is_grad_enabled() and (bool(wanted) or student.hidden.requires_grad)
    work = _Work(student, teacher, labels, mix, chunk, slopes)
    total, divergence, task = cast(
        "tuple[Tensor, Tensor, Tensor]", _Chunked.apply(work, student.hidden, *wanted)
    )
    return Losses(total, divergence, task)


@torch.no_grad()
def drawn(side: Side, generator: torch.Generator, chunk: int = 512) -> Tensor:
    """A label for every position, drawn from the model's own answer to it: [positions]."""
    labels = [
        torch.multinomial(side.head(part).float().softmax(-1).cpu(), 1, generator=generator)
        for part in side.hidden.detach().split(chunk)
    ]
    return torch.cat(labels).flatten().to(side.hidden.device)


@dataclass(frozen=True)
class _Work:
    """The arguments of `chunked` that autograd does not look at, with the sum over chunks."""

    student: Side
    teacher: Told | None
    labels: Tensor
    mix: Mix
    chunk: int
    slopes: bool

    def run(self, weights: Sequence[Tensor], grads: list[Tensor]) -> Tensor:
        """Sums of divergence and cross-entropy; adds to `grads` (hidden, then weights) if any."""
        sums = torch.zeros(
            2,
            dtype=torch.promote_types(self.student.hidden.dtype, torch.float32),
            device=self.labels.device,
        )
        head = self.student.head
        given = weights, grads[1:]
        through = _Linear(head, *given) if isinstance(head, nn.Linear) else _Any(head, *given)
        for start in range(0, len(self.labels), self.chunk):
            part = slice(start, start + self.chunk)
            hidden = self.student.hidden[part].detach()
            logits = through.logits(hidden.requires_grad_(bool(grads)))
            theirs = None if self.teacher is None else _said(self.teacher, part)
            own = through.own(logits)
            sums += _over_rows(own, theirs, self.labels[part], self.mix, bool(grads))
            del theirs
            if grads:
                grads[0][part] = through.back(logits, hidden, own)
            del logits, own
        return sums


class _Any:
    """A head of which nothing is known, through autograd."""

    def __init__(
        self, head: Callable[[Tensor], Tensor], weights: Sequence[Tensor], sums: Sequence[Tensor]
    ) -> None:
        self.head, self.weights, self.sums = head, weights, sums

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, width] -> [n, classes]."""
        with torch.set_grad_enabled(hidden.requires_grad):
            return self.head(hidden)

    def own(self, logits: Tensor) -> Tensor:
        """The same, free to be written over."""
        # The head may have kept them, or given the states back.
        return logits.detach().clone() if logits.requires_grad else logits

    def back(self, logits: Tensor, hidden: Tensor, slope: Tensor) -> Tensor:
        """The slope in `hidden` from that in the logits; those in the weights are summed."""
        found = torch.autograd.grad(logits, (hidden, *self.weights), slope, materialize_grads=True)
        for total, more in zip(self.sums, found[1:], strict=True):
            total += more
        return found[0]


class _Linear:
    """A linear head, some of its classes at a time: nothing of its size is cast, or made to add."""

    def __init__(self, head: nn.Linear, weights: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
        self.head = head
        self.bias: Tensor | None = head.bias
        into = {
            id(weight): total for weight, total in zip(weights, sums, strict=False)
        }  # no sums: no slopes
        self.by_weight, self.by_bias = into.get(id(head.weight)), into.get(id(self.bias))
        classes, width = head.weight.shape
        step = max(1, _SLICE // width) if head.weight.device.type == "cpu" else classes
        self.slices = [slice(start, start + step) for start in range(0, classes, step)]

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, width] -> [n, classes]."""
        kind = _computed_in(self.head.weight)
        made = hidden.new_empty(len(hidden), len(self.head.weight), dtype=kind)
        hidden = hidden.detach().to(kind)
        for part in self.slices:
            torch.mm(hidden, self.head.weight.detach()[part].to(kind).t(), out=made[:, part])
        return made if self.bias is None else made.add_(self.bias.detach())

    def own(self, logits: Tensor) -> Tensor:
        """The same, free to be written over."""
        return logits

    def back(self, logits: Tensor, hidden: Tensor, slope: Tensor) -> Tensor:
        """The slope in `hidden` from that in the logits; those in the weights are summed."""
        pulled = torch.zeros_like(hidden, dtype=torch.promote_types(hidden.dtype, torch.float32))
        states = hidden.detach().to(slope.dtype)
        for part in self.slices:
            pulled += slope[:, part] @ self.head.weight.detach()[part].to(slope.dtype)
            if self.by_weight is not None:
                self.by_weight[part] += slope[:, part].t() @ states
        if self.by_bias is not None:
            self.by_bias += slope.sum(0, dtype=self.by_bias.dtype)
        return pulled


def _computed_in(weight: Tensor) -> torch.dtype:
    """What a product with a weight is computed in."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class _Chunked(torch.autograd.Function):
    """Autograd's view of `chunked`: a scalar whose gradient is known once its value is."""

    @staticmethod
    def forward(ctx: Any, work: _Work, hidden: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        count = max(len(work.labels), 1)
        grads = [torch.zeros_like(t) for t in (hidden, *weights)] if work.slopes else []
        sums = work.run(weights, grads)
        for grad in grads:
            grad /= count
        ctx.grads = grads
        labeled = (work.labels != IGNORED).sum().clamp_min(1)
        total = (sums * sums.new_tensor([work.mix.weight, work.mix.task_weight])).sum() / count
        parts = sums[0] / count, sums[1] / labeled
        ctx.mark_non_differentiable(*parts)
        return total, *parts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *slopes: Tensor
    ) -> tuple[Tensor | None, ...]:
        # Scaled where they are, and so once: they are as large as the head.
        wanted = iter([grad.mul_(slopes[0].to(grad.dtype)) for grad in ctx.grads])
        del ctx.grads
        given = [next(wanted) if need else None for need in ctx.needs_input_grad[1:]]
        return None, *given


@torch.no_grad()
def _said(teacher: Told, part: slice) -> Tensor | Top | Sample:
    """What the teacher says of some positions."""
    return teacher.head(teacher.hidden[part]) if isinstance(teacher, Side) else teacher[part]


def _over_rows(
    student: Tensor,
    teacher: Tensor | Top | Sample | None,
    labels: Tensor,
    mix: Mix,
    slopes: bool,
) -> Tensor:
    """Sums of divergence and cross-entropy of one chunk.

    With slopes, d(mix)/d(logits) is left where the student's logits were. A few rows at a time,
    so that the dozen passes over them stay in the processor's cache.
    """
    cached = _CACHED.get(student.device.type, student.numel())
    rows = max(1, cached // student.shape[-1])
    sums: list[Tensor] = []
    for start in range(0, len(student), rows):
        part = slice(start, start + rows)
        theirs = None if teacher is None else teacher[part]
        sums.append(_rows(student[part], theirs, labels[part], mix, slopes))
    return torch.stack(sums).sum(0)


def _rows(
    student: Tensor,
    teacher: Tensor | Top | Sample | None,
    labels: Tensor,
    mix: Mix,
    slopes: bool,
) -> Tensor:
    own = log_probabilities(student, 1.0)
    judged = labels != IGNORED
    picked = own.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    task = -(picked * judged).sum()
    settings = mix.divergence, mix.temperature, mix.share, slopes
    if teacher is None:
        found = Found(torch.zeros_like(task), None)
    elif isinstance(teacher, Tensor):
        found = measured(student, teacher, *settings, known=own)
    else:
        found = teacher.measured(student, *settings)
    if slopes:
        pull = None if found.slope is None else found.slope.mul_(mix.weight)
        if pull is None or mix.task_weight:
            hard = toward(own.exp_(), labels, judged * mix.task_weight)
            pull = hard if pull is None else pull.add_(hard)
        student.copy_(pull)
    return torch.stack([found.each.sum(), task])
