"""How much blocks, heads, neurons and channels matter, told from what passes through them.

All are means and norms over tokens of a few calibration sequences; none needs a gradient.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

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
