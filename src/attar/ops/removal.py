"""Units taken out of a linear's inputs: what the others can stand for, and making up for them.

A unit is `size` inputs side by side: one is a neuron, many are what heads put out. The error
meant is that of the linear's outputs, E |W x - W' x|^2 = tr((W - W') G (W - W')T) for inputs x
with the gram G. Everything is computed in float64.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

_DAMPING = 0.01  # of an input's energy, at the least
_FLOOR, _TRIES = 1e-8, 7  # of a unit's mean energy; tenfold at each try


def refit(weight: Tensor, gram: Tensor, kept: Sequence[int], tokens: int) -> Tensor:
    """Weights of the inputs that stay, [rows, kept], with the least error for what went.

    Least squares, as He, Zhang, Sun 2017, "Channel Pruning", arXiv:1707.06168, section 3.1 (ii),
    held to the weights that there were: W_K + W_R G_RK (G_KK + damping)^-1, K kept, R removed.
    What least squares take from chance grows as inputs per token do, so the damping is that
    share of each input's energy.

    weight: [rows, width]; gram: [width, width], the mean over so many tokens.
    """
    exact, inner = weight.double(), gram.double()
    stay, gone = _split(kept, len(gram), gram.device)
    own = inner[stay][:, stay]
    share = max(_DAMPING, len(stay) / max(tokens, 1))
    own.diagonal().mul_(1 + share).clamp_min_(1e-12)
    missing = exact[:, gone] @ inner[gone][:, stay]
    more = torch.cholesky_solve(missing.t(), torch.linalg.cholesky(own)).t()
    return (exact[:, stay] + more).to(weight.dtype)


def fold(weight: Tensor, gram: Tensor, kept: Sequence[int], size: int = 1) -> Tensor:
    """Weights of the units that stay, [rows, kept * size], with each that went given to one.

    A unit that goes is given to the one which can best stand for it, times the coefficients of
    least squares. Srinivas and Babu 2015, arXiv:1507.06149, section 3, do so for equal weights;
    here equal means what the data show. `kept`: indices of units.

    weight: [rows, width]; gram: [width, width].
    """
    pairs = _Pairs(weight, gram, size)
    stay, gone = _split(kept, pairs.count, gram.device)
    for unit in gone.tolist():
        explained = pairs.explained(unit)[stay]
        pairs.give(unit, int(stay[explained.argmax()]))
    return pairs.weight[:, stay].flatten(1).to(weight.dtype)


def costs_of_folding(weight: Tensor, gram: Tensor, size: int = 1) -> Tensor:
    """What it costs to take out each unit after all cheaper ones: [units], a share of all there is.

    Units go one by one, each time the one that another can stand for at the least error, which
    is then given its weights. The pair's error is that of Srinivas and Babu 2015 (above, section
    3, "saliency"), |w_j|^2 E (a_j - c a_i)^2, for units of any size. Costs never fall from one
    unit to the next, so that those below any bound are the first that go. The last one left
    costs all that it then puts out.
    """
    pairs = _Pairs(weight, gram, size)
    whole = (pairs.weight.flatten(1) @ gram.double() * pairs.weight.flatten(1)).sum()
    own, best = torch.zeros(2, pairs.count, dtype=torch.float64, device=gram.device)
    partner = torch.zeros(pairs.count, dtype=torch.long, device=gram.device)
    gone = torch.zeros(pairs.count, dtype=torch.bool, device=gram.device)

    def look(unit: int) -> None:
        explained = pairs.explained(unit)
        own[unit] = explained[unit]
        explained[unit] = -1
        best[unit], partner[unit] = explained.masked_fill(gone, -1).max(0)

    for unit in range(pairs.count):
        look(unit)
    costs, least = torch.zeros_like(own), 0.0
    for _ in range(pairs.count - 1):
        unit = int((own - best).masked_fill(gone, torch.inf).argmin())
        least = max(least, float(own[unit] - best[unit]))
        costs[unit], gone[unit] = least, True
        heir = int(partner[unit])
        pairs.give(unit, heir)
        for orphan in [heir, *((partner == unit) & ~gone).nonzero().flatten().tolist()]:
            look(orphan)
    costs[~gone] = own[~gone].clamp_min(least)
    return costs / whole.clamp_min(1e-30)


class _Pairs:
    """How well each unit can stand for each other one; a unit may be given to another.

    weight: [rows, units, size], which changes; the gram's columns are whitened by unit, so that
    what one unit explains of another is a sum of squares.
    """

    def __init__(self, weight: Tensor, gram: Tensor, size: int) -> None:
        self.count, self.size = len(gram) // size, size
        self.weight = weight.double().unflatten(1, (self.count, size)).clone()
        inner = gram.double().unflatten(1, (self.count, size))
        own = torch.stack(
            [inner[unit * size : (unit + 1) * size, unit] for unit in range(self.count)]
        )
        self._roots = _roots(own)
        # G_ji L_i^-T for all i at once: [units, size, width] back to [width, units, size]
        solved = torch.linalg.solve_triangular(self._roots, inner.permute(1, 2, 0), upper=False)
        self._white = solved.permute(2, 0, 1)

    def explained(self, unit: int) -> Tensor:
        """The energy of a unit's outputs that each unit can stand for: [units]; all, by itself."""
        short = torch.linalg.qr(self.weight[:, unit], mode="r").R
        rows = self._white[unit * self.size : (unit + 1) * self.size]
        return torch.einsum("ka,aub->kub", short, rows).square().sum((0, 2))

    def give(self, unit: int, heir: int) -> None:
        """Let one unit stand for another: W_i + W_j G_ji G_ii^-1."""
        rows = self._white[unit * self.size : (unit + 1) * self.size, heir]
        share = torch.linalg.solve_triangular(self._roots[heir], rows, upper=False, left=False)
        self.weight[:, heir] += self.weight[:, unit] @ share


def _roots(grams: Tensor) -> Tensor:
    """L, lower, with L LT each unit's own gram, damped as little as makes that definite.

    Sums of few tokens have no full rank, and in float32 they err by up to 1e-6 of their mean.
    grams: [units, size, size].
    """
    floors = _FLOOR * grams.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    damped = grams
    for _ in range(_TRIES):
        damped = grams + torch.diag_embed(floors[:, None].expand(grams.shape[:2]))
        roots, info = cast("tuple[Tensor, Tensor]", torch.linalg.cholesky_ex(damped))
        if not info.any():
            return roots
        floors = floors.where(info == 0, 10 * floors)
    return torch.linalg.cholesky(damped)  # which says what is wrong with it


def _split(kept: Sequence[int], count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices that stay, in the order given, and the others."""
    stay = torch.tensor(list(kept), device=device)
    there = torch.ones(count, dtype=torch.bool, device=device)
    there[stay] = False
    return stay, there.nonzero().flatten()
