"""How much blocks, heads, neurons and channels matter, told from what passes through them.

All are means and norms over a few calibration sequences; `taylor` alone needs gradients.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def block_influence(before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
    """How far a block turns the hidden states: the mean over tokens of 1 - cos(before, after).

    before, after: [batch, length, hidden]; mask: [batch, length], true where a token is real.
    From 0 (changes no direction) to 2. Men et al. 2024, "ShortGPT", arXiv:2403.03853.
    """
    cosine = functional.cosine_similarity(before.float(), after.float(), dim=-1)
    return 1 - cosine.where(mask, 0.0).sum() / mask.sum().clamp_min(1)


def activity(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over each sequence's tokens of |value|: [batch, length, n] -> [batch, n].

    mask: [batch, length], true where a token is real. What `importance` adds up. Muralidharan
    et al. 2024, "Compact Language Models via Pruning and Knowledge Distillation" (Minitron),
    arXiv:2407.14679, section 2.2, who found the mean over a sequence, then the L2 norm over
    sequences, to serve best.
    """
    sizes = values.float().abs() * mask.unsqueeze(-1)
    return sizes.sum(1) / mask.sum(1).clamp_min(1).unsqueeze(-1)


def head_activity(values: Tensor, mask: Tensor, heads: int) -> Tensor:
    """`activity` of heads: what a token's size is, is the L2 norm of the head's output.

    values: [batch, length, heads * size], heads side by side -> [batch, heads]. Minitron as above.
    """
    return activity(values.float().unflatten(-1, (heads, -1)).norm(dim=-1), mask)


def taylor(values: Tensor, gradients: Tensor, units: int) -> Tensor:
    """How much the loss would change were a unit zero, to first order, by sequence.

    values: [batch, length, width], and the loss's gradients by them; a unit is `width / units`
    values side by side -> [batch, units]: |sum over tokens and values of value * gradient|.
    Molchanov et al. 2017, arXiv:1611.06440, section 2.2; for heads Michel et al. 2019,
    arXiv:1905.10650, section 4.1.
    """
    change = (values.float() * gradients.float()).sum(1)
    return change.unflatten(-1, (units, -1)).sum(-1).abs()


def importance(activities: Tensor) -> Tensor:
    """The L2 norm over sequences, [sequences, n] -> [n]: a score to compare among the n."""
    return activities.float().norm(dim=0)


def strongest(scores: Tensor, count: int) -> list[int]:
    """The indices of the `count` highest scores, in ascending order; of equals the first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return sorted(order[:count].tolist())


def strongest_heads(scores: Tensor, keys: int, kept_keys: int, each: int) -> list[int]:
    """Query heads to keep: `kept_keys` of `keys` groups, and `each` of the queries in one.

    scores: [queries], in groups that share a head of keys and values. A group counts as its
    `each` best queries do.
    """
    groups = scores.reshape(keys, -1)
    best = groups.sort(dim=1, descending=True).values[:, :each].sum(1)
    size = groups.shape[1]
    return [
        key * size + query
        for key in strongest(best, kept_keys)
        for query in strongest(groups[key], each)
    ]


def strongest_overall(scores: Sequence[Tensor], count: int, lot: int = 1) -> list[list[int]]:
    """The indices of the highest scores over several lists, about `count` in all, by list.

    They are taken `lot` at a time, the highest of a list first, and a lot counts as its mean
    does. Every list keeps at least its first lot.
    """
    lots = [torch.sort(part, descending=True, stable=True).indices.split(lot) for part in scores]
    means = [
        [float(part[each].mean()) for each in own] for part, own in zip(scores, lots, strict=True)
    ]
    taken = [1] * len(lots)
    total = sum(len(own[0]) for own in lots)
    rest = [
        (-mean, place, index) for place, own in enumerate(means) for index, mean in enumerate(own)
    ]
    for _, place, index in sorted(entry for entry in rest if entry[2]):
        size = len(lots[place][index])
        if total + size / 2 > count:
            break
        taken[place], total = index + 1, total + size
    return [
        sorted(torch.cat(own[:number]).tolist()) for own, number in zip(lots, taken, strict=True)
    ]
