"""How far a student's distribution is from its teacher's, and which way is nearer.

Logits are [..., classes]: classes are the vocabulary of a language model or the classes of a
classifier. Divergences are in nats, summed in float32 (float64 where the logits are) whatever
the logits are held in. A divergence at temperature T compares softmax(logits / T) and is
multiplied by T^2, so that its gradient keeps its size when T changes (Hinton, Vinyals and Dean
2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.1).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100  # the label of a position that is not judged, as in torch's cross-entropy
Divergence = Literal[
    "forward",
    "reverse",
    "jensen-shannon",
    "skewed",
    "skewed-reverse",
    "total-variation",
    "logits",
    "hard",
]
_FLOOR = -1e4  # of log-probabilities: exp of it is 0, and 0 times it is not NaN as 0 times -inf is


def forward_kl(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) times T^2, in nats, averaged over the positions where mask is true.

    student, teacher: [..., classes]; mask: [...], or None for all positions. No position: 0.
    The student must cover all that the teacher finds likely (Hinton et al. 2015).
    """
    own, other = log_probabilities(student, temperature), log_probabilities(teacher, temperature)
    return _mean((other.exp() * (other - own)).sum(-1), mask) * temperature**2


def reverse_kl(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """KL(student || teacher) times T^2, in nats, averaged over the positions where mask is true.

    Shapes as in `forward_kl`. The student must stay where the teacher finds likely, and may
    leave out the rest (Gu et al. 2024, "MiniLLM", arXiv:2306.08543).
    """
    own, other = log_probabilities(student, temperature), log_probabilities(teacher, temperature)
    return _mean((own.exp() * (own - other)).sum(-1), mask) * temperature**2


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) in nats, averaged over the positions whose label is not IGNORED.

    logits: [..., classes]; labels: [...], integers. No position judged: 0, with gradient 0.
    """
    own = log_probabilities(logits, 1.0)
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
class Found:
    """The divergence of each position, [positions], and its slope in the student's logits.

    slope: [positions, classes], or None where it was not asked for.
    """

    each: Tensor
    slope: Tensor | None


def measured(
    student: Tensor,
    teacher: Tensor,
    divergence: Divergence,
    temperature: float = 1.0,
    share: float = 0.5,
    slope: bool = False,
    known: Tensor | None = None,
) -> Found:
    """A divergence by name, of every position, with its slope in the student's logits.

    student, teacher: [positions, classes]; known: the student's log-probabilities at temperature
    1, where they are at hand; left as they are. With p and q the teacher's and the student's
    softmax(logits / T), each times T^2:

    - `forward`: KL(p || q). `reverse`: KL(q || p).
    - `jensen-shannon`: share KL(p || m) + (1 - share) KL(q || m), m = share p + (1 - share) q
      (Agarwal et al. 2024, GKD, arXiv:2306.13649, equation 1).
    - `skewed`: KL(p || share p + (1 - share) q); `skewed-reverse`: KL(q || share q + (1 - share)
      p) (Ko et al. 2024, DistiLLM, arXiv:2402.03898, section 3.1).
    - `total-variation`: half the sum of |p - q| (Wen et al. 2023, arXiv:2307.15190).
    - `logits`: the mean square of what the logits differ by, without T (Kim et al. 2021,
      arXiv:2105.08919).
    - `hard`: -log q of the teacher's likeliest class at T = 1.
    """
    if divergence == "logits":
        rest = student.to(_wide(student)) - teacher.to(_wide(teacher))
        each = rest.square().mean(-1)
        return Found(each, rest.mul_(2 / rest.shape[-1]) if slope else None)
    if divergence == "hard":
        own = log_probabilities(student, 1.0) if known is None else known
        best = teacher.argmax(-1)
        each = -own.gather(-1, best.unsqueeze(-1)).squeeze(-1)
        return Found(each, toward(own.exp(), best, torch.ones_like(each)) if slope else None)
    if known is None or temperature != 1.0:
        known = log_probabilities(student, temperature)
    own = known
    other = log_probabilities(teacher, temperature)
    with torch.autocast(own.device.type, enabled=False):  # it would round dot products to bf16
        found = _BY_NAME[divergence](own, other, share, slope)
    if found.slope is not None and temperature != 1.0:
        found.slope.mul_(temperature)
    return Found(found.each * temperature**2, found.slope)


def _forward(own: Tensor, other: Tensor, _: float, slope: bool) -> Found:
    theirs = other.exp()
    each = torch.linalg.vecdot(theirs, other.sub_(own))
    return Found(each, torch.exp(own, out=other).sub_(theirs) if slope else None)


def _reverse(own: Tensor, other: Tensor, _: float, slope: bool) -> Found:
    mine = own.exp()
    ratio = torch.sub(own, other, out=other)
    each = torch.linalg.vecdot(mine, ratio)
    return Found(each, ratio.sub_(each.unsqueeze(-1)).mul_(mine) if slope else None)


def _jensen_shannon(own: Tensor, other: Tensor, share: float, slope: bool) -> Found:
    mine, theirs = own.exp(), other.exp()
    middle = _log_mixed(theirs, mine, share)
    each = share * torch.linalg.vecdot(theirs, other.sub_(middle))
    above = torch.sub(own, middle, out=middle)
    each = each + (1 - share) * torch.linalg.vecdot(mine, above)
    return Found(each, _pulled(mine, above.mul_(1 - share)) if slope else None)


def _skewed(own: Tensor, other: Tensor, share: float, slope: bool) -> Found:
    mine, theirs = own.exp(), other.exp()
    above = other.sub_(_log_mixed(theirs, mine, share))
    each = torch.linalg.vecdot(theirs, above)
    return Found(each, _pulled(mine, above.exp_().mul_(share - 1)) if slope else None)


def _skewed_reverse(own: Tensor, other: Tensor, share: float, slope: bool) -> Found:
    mine = own.exp()
    ratio = own - _log_mixed(mine, other.exp(), share)
    each = torch.linalg.vecdot(mine, ratio)
    return Found(each, _pulled(mine, ratio - share * ratio.exp()) if slope else None)


def _total_variation(own: Tensor, other: Tensor, _: float, slope: bool) -> Found:
    mine = own.exp()
    rest = mine - other.exp()
    each = rest.abs().sum(-1) / 2
    return Found(each, _pulled(mine, rest.sign_().mul_(0.5)) if slope else None)


_BY_NAME: dict[str, Callable[[Tensor, Tensor, float, bool], Found]] = {
    "forward": _forward,
    "reverse": _reverse,
    "jensen-shannon": _jensen_shannon,
    "skewed": _skewed,
    "skewed-reverse": _skewed_reverse,
    "total-variation": _total_variation,
}


def _log_mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The logarithm of a mixture of probabilities, of which the first has this share."""
    mixed = (first * share).add_(second, alpha=1 - share)
    return mixed.clamp_min_(torch.finfo(mixed.dtype).tiny).log_()


def _pulled(probabilities: Tensor, slopes: Tensor) -> Tensor:
    """The slope in logits, from that in the probabilities that they make: may write into it."""
    mean = torch.linalg.vecdot(probabilities, slopes)
    return slopes.sub_(mean.unsqueeze(-1)).mul_(probabilities)


def toward(probabilities: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weights x (probabilities - one at the label), in place: the slope of cross-entropy."""
    where = labels.clamp_min(0).unsqueeze(-1)
    minus = -torch.ones_like(where, dtype=probabilities.dtype)
    return probabilities.scatter_add_(-1, where, minus).mul_(weights.unsqueeze(-1))


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Log softmax(logits / temperature), in float32 or better, nowhere minus infinity."""
    scaled = logits.to(_wide(logits))
    if temperature != 1.0:
        scaled = scaled / temperature
    found = functional.log_softmax(scaled, -1)
    return found.clamp_min(_FLOOR) if found.requires_grad else found.clamp_min_(_FLOOR)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.sum() / max(values.numel(), 1)
    return values.where(mask, 0.0).sum() / mask.sum().clamp_min(1)


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
