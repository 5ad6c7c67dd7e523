"""When a row is sure enough to leave a model early, and what that trades for blocks not run.

A threshold says how unsure a row may be and still leave, 0 to 1; at 0 no row leaves.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def uncertainty(logits: Tensor) -> Tensor:
    """The entropy of the answer as a share of the highest there is: [..., classes] -> [...].

    0: all of the probability is on one class; 1: every class is as likely as the others. Liu et
    al. 2020, "FastBERT", arXiv:2004.02178, section 3.3 (equation 6).
    """
    own = logits.float().log_softmax(-1)
    entropy = -torch.special.xlogy(own.exp(), own.exp()).sum(-1)
    return (entropy / math.log(logits.shape[-1])).clamp(0.0, 1.0)


def leaves(unsure: Tensor, threshold: float) -> Tensor:
    """Which rows leave: [...] uncertainties -> [...] booleans."""
    return (unsure <= threshold) & (threshold > 0)


@dataclass(frozen=True)
class Leaving:
    """What a threshold does to some rows.

    counts: how many leave at each exit, and after those how many at the end; agreement: the
    share whose answer is the whole model's.
    """

    threshold: float
    counts: tuple[int, ...]
    agreement: float

    def mean(self, blocks: Sequence[int]) -> float:
        """Blocks run, a row, where `blocks` are run up to each exit and to the end."""
        pairs = zip(self.counts, blocks, strict=True)
        return sum(count * run for count, run in pairs) / sum(self.counts)


def leaving(unsure: Tensor, agreed: Tensor, threshold: float) -> Leaving:
    """What a threshold does to rows that leave at the first exit where they are sure enough.

    unsure: uncertainties [exits, rows]; agreed: [exits, rows], true where an exit answers as the
    whole model does.
    """
    exits, rows = unsure.shape
    end = torch.ones(1, rows, dtype=torch.bool, device=unsure.device)
    at = torch.cat([leaves(unsure, threshold), end]).int().argmax(0)
    counts = torch.bincount(at, minlength=exits + 1).tolist()
    same = torch.cat([agreed, end]).gather(0, at[None])
    return Leaving(threshold, tuple(counts), float(same.double().mean()))


def sweep(unsure: Tensor, agreed: Tensor, most: int = 1000) -> list[Leaving]:
    """What thresholds from 0 to 1 do: those at which another row leaves, about `most` of them."""
    seen = unsure.flatten().unique().double()  # sorted
    chosen = seen[:: -(-len(seen) // most)].tolist()
    return [leaving(unsure, agreed, value) for value in sorted({0.0, *chosen, 1.0})]


def widest(found: Sequence[Leaving], lost: float) -> Leaving:
    """The largest threshold by which at most this share of the answers is another one."""
    within = [each for each in found if each.agreement >= 1 - lost - 1e-9]
    return max(within, key=lambda each: each.threshold)
