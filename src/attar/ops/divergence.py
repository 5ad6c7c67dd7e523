"""How far a student's distribution is from its teacher's, and the chunked loss over a large head.

Logits are [..., classes]: classes are the vocabulary of a language model or the classes of a
classifier. Divergences are in nats, summed in float32 (float64 where the logits are) whatever
the logits are held in. A divergence at temperature T compares softmax(logits / T) and is
multiplied by T^2, so that its gradient keeps its size when T changes (Hinton, Vinyals and Dean
2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.1).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100  # the label of a position that is not judged, as in torch's cross-entropy
Divergence = Literal["forward", "reverse", "hard"]
_FLOOR = -1e4  # of log-probabilities: exp of it is 0, and 0 times it is not NaN as 0 times -inf is
_CACHED = 1 << 20  # logits handled at once by what is not a matrix product: 4 MB stay in cache


def forward_kl(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) times T^2, in nats, averaged over the positions where mask is true.

    student, teacher: [..., classes]; mask: [...], or None for all positions. No position: 0.
    The student must cover all that the teacher finds likely (Hinton et al. 2015).
    """
    own, other = _log_probabilities(student, temperature), _log_probabilities(teacher, temperature)
    return _mean((other.exp() * (other - own)).sum(-1), mask) * temperature**2


def reverse_kl(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """KL(student || teacher) times T^2, in nats, averaged over the positions where mask is true.

    Shapes as in `forward_kl`. The student must stay where the teacher finds likely, and may
    leave out the rest (Gu et al. 2024, "MiniLLM", arXiv:2306.08543).
    """
    own, other = _log_probabilities(student, temperature), _log_probabilities(teacher, temperature)
    return _mean((own.exp() * (own - other)).sum(-1), mask) * temperature**2


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) in nats, averaged over the positions whose label is not IGNORED.

    logits: [..., classes]; labels: [...], integers. No position judged: 0, with gradient 0.
    """
    own = _log_probabilities(logits, 1.0)
    picked = own.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return _mean(-picked, labels != IGNORED)


def hard_targets(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy, in nats, with the teacher's likeliest class as the label.

    Shapes as in `forward_kl`. What sequence-level distillation does at each position (Kim and
    Rush 2016, arXiv:1606.07947).
    """
    labels = teacher.argmax(-1)
    return cross_entropy(student, labels if mask is None else labels.where(mask, IGNORED))


@dataclass(frozen=True)
class Side:
    """One model at its head: what reads hidden states, and the states that it reads.

    head: [n, width] -> logits [n, classes]; hidden: [positions, width]; weights: the tensors
    inside `head` that want a gradient (none for a teacher).
    """

    head: Callable[[Tensor], Tensor]
    hidden: Tensor
    weights: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Mix:
    """What a position adds to the loss: weight x divergence + task_weight x cross-entropy."""

    divergence: Divergence = "forward"
    temperature: float = 1.0
    weight: float = 0.0
    task_weight: float = 1.0


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
    student: Side, teacher: Side | None, labels: Tensor, mix: Mix, chunk: int = 512
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
    teacher: Side | None
    labels: Tensor
    mix: Mix
    chunk: int
    slopes: bool

    def run(self, weights: Sequence[Tensor], grads: list[Tensor]) -> Tensor:
        """Sums of divergence and cross-entropy; adds to `grads` (hidden, then weights) if any."""
        sums = torch.zeros(2, dtype=_wide(self.student.hidden), device=self.labels.device)
        positions = len(self.labels)
        for start in range(0, positions, self.chunk):
            part = slice(start, start + self.chunk)
            hidden = self.student.hidden[part].detach()
            with torch.set_grad_enabled(bool(grads)):
                logits = self.student.head(hidden.requires_grad_(bool(grads)))
            theirs = None
            if self.teacher is not None:
                with torch.no_grad():
                    theirs = self.teacher.head(self.teacher.hidden[part])
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


def _over_rows(
    student: Tensor, teacher: Tensor | None, labels: Tensor, mix: Mix, slope: Tensor | None
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
    student: Tensor, teacher: Tensor | None, labels: Tensor, mix: Mix, slope: Tensor | None
) -> Tensor:
    own = _log_probabilities(student, 1.0)
    judged = labels != IGNORED
    picked = own.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    task = -(picked * judged).sum()
    if teacher is None:
        if slope is not None:
            slope.copy_(_toward(own.exp_(), labels, judged * mix.task_weight))
        return torch.stack([torch.zeros_like(task), task])
    if mix.divergence == "hard":
        best = teacher.argmax(-1)
        divergence = -own.gather(-1, best.unsqueeze(-1)).sum()
        if slope is not None:
            here = torch.full_like(picked, mix.weight)
            pull = _toward(own.exp(), best, here)
            slope.copy_(pull.add_(_toward(own.exp_(), labels, judged * mix.task_weight)))
        return torch.stack([divergence, task])
    divergence, pull = _kl_and_slope(student, teacher, own, mix, slope is not None)
    if slope is not None:
        if mix.task_weight:
            pull.add_(_toward(own.exp_(), labels, judged * mix.task_weight))
        slope.copy_(pull)
    return torch.stack([divergence, task])


def _kl_and_slope(
    student: Tensor, teacher: Tensor, at_one: Tensor, mix: Mix, wanted: bool
) -> tuple[Tensor, Tensor]:
    """T^2 times the sum of the divergences, and `mix.weight` times its slope in the logits.

    d T^2 KL(t||s) / d logits = T (s - t); d T^2 KL(s||t) / d logits = T s (log s/t - KL).
    """
    scale = mix.temperature
    own = at_one if scale == 1.0 else _log_probabilities(student, scale)
    other = _log_probabilities(teacher, scale)
    if mix.divergence == "forward":
        theirs = other.exp()
        each = torch.linalg.vecdot(theirs, other.sub_(own))
        pull = torch.exp(own, out=other).sub_(theirs) if wanted else other
    else:
        mine = own.exp()
        ratio = torch.sub(own, other, out=other)
        each = torch.linalg.vecdot(mine, ratio)
        pull = ratio.sub_(each.unsqueeze(-1)).mul_(mine)
    return each.sum() * scale**2, pull.mul_(scale * mix.weight)


def _toward(probabilities: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weights x (probabilities - one at the label), in place: the slope of cross-entropy."""
    where = labels.clamp_min(0).unsqueeze(-1)
    minus = -torch.ones_like(where, dtype=probabilities.dtype)
    return probabilities.scatter_add_(-1, where, minus).mul_(weights.unsqueeze(-1))


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    scaled = logits.to(_wide(logits))
    if temperature != 1.0:
        scaled = scaled / temperature
    return functional.log_softmax(scaled, -1).clamp_min(_FLOOR)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.sum() / max(values.numel(), 1)
    return values.where(mask, 0.0).sum() / mask.sum().clamp_min(1)


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
