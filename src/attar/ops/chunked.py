"""The loss over a large head, in chunks: all its logits are never in memory at once."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from attar.ops.divergence import IGNORED, Divergence, log_probabilities, measured, toward
from attar.ops.sketch import Sample, Top

_CACHED = 1 << 20  # logits handled at once by what is not a matrix product: 4 MB stay in cache


@dataclass(frozen=True)
class Side:
    """One model at its head: what reads hidden states, and the states that it reads.

    head: [n, width] -> logits [n, classes]; hidden: [positions, width]; weights: the tensors
    inside `head` that want a gradient (none for a teacher).
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
        positions = len(self.labels)
        for start in range(0, positions, self.chunk):
            part = slice(start, start + self.chunk)
            hidden = self.student.hidden[part].detach()
            with torch.set_grad_enabled(bool(grads)):
                logits = self.student.head(hidden.requires_grad_(bool(grads)))
            theirs = None if self.teacher is None else _said(self.teacher, part)
            own = logits.detach()
            slope = torch.empty_like(own) if grads else None
            sums += _over_rows(own, theirs, self.labels[part], self.mix, slope)
            if slope is not None:
                found = torch.autograd.grad(
                    logits, (hidden, *weights), slope, materialize_grads=True
                )
                del logits, own, slope
                grads[0][part] = found[0]
                for total, more in zip(grads[1:], found[1:], strict=True):
                    total += more
        return sums


class _Chunked(torch.autograd.Function):
    """Autograd's view of `chunked`: a scalar whose gradient is known once its value is."""

    @staticmethod
    def forward(ctx: Any, work: _Work, hidden: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        count = max(len(work.labels), 1)
        grads = [torch.zeros_like(t) for t in (hidden, *weights)] if work.slopes else []
        sums = work.run(weights, grads)
        for grad in grads:
            grad /= count
        ctx.save_for_backward(*grads)
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
        grads = [grad * slopes[0].to(grad.dtype) for grad in ctx.saved_tensors]
        wanted = iter(grads)
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
    slope: Tensor | None,
) -> Tensor:
    """Sums of divergence and cross-entropy of one chunk; fills `slope` with d(mix)/d(logits).

    A few rows at a time, so that the dozen passes over them stay in the processor's cache.
    """
    rows = max(1, _CACHED // student.shape[-1]) if student.device.type == "cpu" else len(student)
    sums: list[Tensor] = []
    for start in range(0, len(student), rows):
        part = slice(start, start + rows)
        out = None if slope is None else slope[part]
        theirs = None if teacher is None else teacher[part]
        sums.append(_rows(student[part], theirs, labels[part], mix, out))
    return torch.stack(sums).sum(0)


def _rows(
    student: Tensor,
    teacher: Tensor | Top | Sample | None,
    labels: Tensor,
    mix: Mix,
    slope: Tensor | None,
) -> Tensor:
    own = log_probabilities(student, 1.0)
    judged = labels != IGNORED
    picked = own.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    task = -(picked * judged).sum()
    if slope is not None and (mix.task_weight or teacher is None):
        slope.copy_(toward(own.exp_(), labels, judged * mix.task_weight))
    elif slope is not None:
        slope.zero_()
    if teacher is None:
        return torch.stack([torch.zeros_like(task), task])
    settings = mix.divergence, mix.temperature, mix.share, slope is not None
    if isinstance(teacher, Tensor):
        found = measured(student, teacher, *settings)
    else:
        found = teacher.measured(student, *settings)
    if slope is not None and found.slope is not None:
        slope.add_(found.slope, alpha=mix.weight)
    return torch.stack([found.each.sum(), task])
