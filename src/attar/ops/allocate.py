"""Sharing out a budget: one setting for each part, the least loss for what all of them cost."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

_LEAST = 1e-12  # a loss of which nothing can be told


def share_out(
    losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float
) -> list[int]:
    """The setting of each part, as an index: the least sum of losses at a sum of costs in budget.

    losses and costs: for each part, one number a setting. Steps along each part's lower convex
    hull are taken in order of what they gain for their cost, the best first; the result is
    optimal but for what the last step that does not fit leaves over. Raises ValueError where the
    cheapest settings are over the budget already.
    """
    hulls = [_hull(loss, cost) for loss, cost in zip(losses, costs, strict=True)]
    chosen = [hull[0] for hull in hulls]
    spent = sum(cost[index] for cost, index in zip(costs, chosen, strict=True))
    if spent > budget * (1 + 1e-9):
        raise ValueError(f"the cheapest settings cost {spent:g}, and the budget is {budget:g}")
    steps = sorted(
        (
            (losses[part][before] - losses[part][later])
            / (costs[part][later] - costs[part][before]),
            -place,
            part,
            before,
            later,
        )
        for part, hull in enumerate(hulls)
        for place, (before, later) in enumerate(pairwise(hull))
    )
    blocked: set[int] = set()
    for _, _, part, before, later in reversed(steps):
        more = costs[part][later] - costs[part][before]
        if part in blocked or spent + more > budget * (1 + 1e-9):
            blocked.add(part)
            continue
        chosen[part], spent = later, spent + more
    return chosen


def losses_between(
    tried: Sequence[float], losses: Sequence[float], costs: Sequence[float]
) -> list[float]:
    """Losses of one part at these costs, of those that it had at the costs tried.

    tried: rising; costs: within these. The logarithm of the loss is taken as linear from one to
    the next, and what costs less never counts as losing less. Where the loss is the same all the
    way, a slope far below any loss measured is added, so that `share_out` spends the budget.
    """
    most = list(accumulate((max(loss, _LEAST) for loss in reversed(losses)), max))
    logs = [math.log(loss) for loss in reversed(most)]
    found: list[float] = []
    for cost in costs:
        after = bisect_left(tried, cost, hi=len(tried) - 1)
        before = max(after - 1, 0)
        span = tried[after] - tried[before]
        way = (cost - tried[before]) / span if span else 1.0
        log = logs[before] + way * (logs[after] - logs[before])
        found.append(math.exp(log) + _LEAST * (1 - cost / tried[-1]) ** 2)
    return found


def _hull(losses: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Settings on the lower convex hull of loss over cost, the cheapest first."""
    order = sorted(range(len(losses)), key=lambda index: (costs[index], losses[index]))
    hull: list[int] = []
    for index in order:
        if hull and losses[index] >= losses[hull[-1]]:
            continue  # dearer, and no better
        while len(hull) > 1 and _slope(hull[-2], hull[-1], losses, costs) <= _slope(
            hull[-1], index, losses, costs
        ):
            hull.pop()
        hull.append(index)
    return hull


def _slope(before: int, later: int, losses: Sequence[float], costs: Sequence[float]) -> float:
    """What a step gains for its cost."""
    return (losses[before] - losses[later]) / (costs[later] - costs[before])
