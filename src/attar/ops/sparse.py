"""Which weights of a linear go, and how those that stay make up for them.

Everything here takes a weight [rows, width] and works row by row on its inputs. A mask is True
where a weight stays.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attar.ops.gram import damped, inverse_factor, without_dead
from attar.ops.rounding import through

_BLOCK = 128


@dataclass(frozen=True)
class Pattern:
    """How many weights stay: a share of them, or `kept` in every `run` inputs of a row.

    `sparsity`: the share that goes, from 0 to 1; what `kept` and `run` come to where they say.
    """

    sparsity: float
    kept: int = 0
    run: int = 0

    def by_row(self, scores: Tensor) -> Tensor:
        """The highest scores of each row, or of each run of a row: a mask, [rows, width]."""
        if self.run:
            return _in_runs(scores, self.kept, self.run)
        count = scores.shape[1] - round(scores.shape[1] * self.sparsity)
        return _highest(scores, count)

    def together(self, scores: Tensor) -> Tensor:
        """The highest scores of all rows taken together; of each run where runs are asked for."""
        if self.run:
            return _in_runs(scores, self.kept, self.run)
        count = scores.numel() - round(scores.numel() * self.sparsity)
        return _highest(scores.reshape(1, -1), count).view_as(scores)

    def partly(self, scores: Tensor, share: float) -> Tensor:
        """A mask on the way to `together`, with this share of the zeros that it will have.

        Where runs are asked for, that share of all runs have theirs already: those of which the
        scores that go are the lowest, taken together.
        """
        if not self.run:
            return Pattern(self.sparsity * share).together(scores)
        keep = self.together(scores)
        gone = functional.pad(scores * ~keep, (0, -scores.shape[1] % self.run))
        lost = gone.reshape(len(scores), -1, self.run).sum(-1)
        whole = Pattern(share).together(lost).repeat_interleave(self.run, 1)
        return keep | whole[:, : scores.shape[1]]


def cubic(start: float, end: float, done: float) -> float:
    """The sparsity at a share of the way from `start` to `end`: fast at first, then ever slower.

    Zhu and Gupta 2017, "To prune, or not to prune" (arXiv 1710.01878), equation 1. done: from 0
    to 1; above 1 it is `end`.
    """
    return end + (start - end) * (1 - min(done, 1.0)) ** 3


def regrowing(weight: Tensor, keep: Tensor) -> Tensor:
    """The masked weight, whose gradient reaches the weights that are masked too.

    They go on learning what they would be worth and may come back (dynamic pruning with
    feedback: Lin et al. 2020, arXiv 2006.07253, section 3). weight, keep: [rows, width].
    """
    return through(weight, weight * keep)


def scored(weight: Tensor, scores: Tensor, keep: Tensor) -> Tensor:
    """The masked weight, whose gradient reaches the scores that the mask was chosen by.

    Sanh, Wolf and Rush 2020, "Movement Pruning" (arXiv 2005.07683), section 3: with L the loss
    and W' what is returned, dL/dW = dL/dW' * keep, and dL/dS = dL/dW' * W, straight through the
    choice; so scores rise where weights move away from zero. All: [rows, width].
    """
    return weight * through(scores, keep)


def wanda_scores(weight: Tensor, energy: Tensor) -> Tensor:
    """|weight| times the norm of the input it multiplies: [rows, width].

    Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models"
    (arXiv 2306.11695), equation 1. energy: [width], the inputs' mean squares.
    """
    return weight.detach().float().abs() * energy.float().clamp_min(0).sqrt()


def sparsegpt(weight: Tensor, gram: Tensor, pattern: Pattern, refits: int = 0) -> Tensor:
    """The weight with zeros in it, and the rest changed so that (W - Q) X stays small.

    Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
    One-Shot" (arXiv 2301.00774), algorithm 1: masks are chosen for 128 inputs at a time, over
    all rows together, and each error moves onto the inputs still to come. Those moves are blind
    to what goes later, so the weights that stay are refitted afterwards by `refits` steps of
    conjugate gradients, as in ALPS (Meng et al. 2024, arXiv 2406.07831, section 3.3).

    gram: [width, width], the sum or mean of x xT over calibration tokens. Weights of inputs
    that were never active go, whatever the pattern says.
    """
    return next(sparsegpt_each([weight], gram, pattern, refits))


def sparsegpt_each(
    weights: Sequence[Tensor], gram: Tensor, pattern: Pattern, refits: int = 0
) -> Iterator[Tensor]:
    """The same for linears that are given the same inputs, their rows in one loop."""
    dead, gram = gram.diagonal() <= 0, without_dead(gram.float())
    weights = [weight.detach().float().masked_fill(dead, 0.0) for weight in weights]
    order = torch.arange(len(gram), device=gram.device)
    rest, keep = _column_by_column(weights, inverse_factor(gram, order), pattern)
    gram = damped(gram, 0.01)
    rows = [len(weight) for weight in weights]
    for weight, part, kept in zip(weights, rest.split(rows, 1), keep.split(rows, 1), strict=True):
        yield refit(weight, part.t().contiguous(), kept.t().contiguous(), gram, refits)


def _column_by_column(
    weights: Sequence[Tensor], upper: Tensor, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """SparseGPT's loop over all rows; what it leaves of the weights, and the mask.

    Both are transposed, so that a column is contiguous: [width, rows of all]. Masks are chosen
    for each weight apart.
    """
    rows = [len(weight) for weight in weights]
    rest = torch.cat([weight.t() for weight in weights], 1)
    keep = torch.ones_like(rest, dtype=torch.bool)
    diagonal = upper.diagonal()[:, None]
    width, run = len(rest), pattern.run or _BLOCK
    errors, gone = (torch.empty(min(_BLOCK, width), sum(rows), device=rest.device) for _ in "eg")
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        block, moves = rest[start:stop], upper[start:stop, start:stop]
        for index, value in enumerate(block):
            if index % run == 0:
                span = slice(start + index, min(start + index + run, stop))
                scores = (rest[span] / diagonal[span]).square()
                parts = [scores] if pattern.run else scores.split(rows, 1)  # runs are of one row
                keep[span] = torch.cat([pattern.together(part.t()).t() for part in parts], 1)
                torch.div(~keep[span], diagonal[span], out=gone[index : span.stop - start])
            error = torch.mul(value, gone[index], out=errors[index])
            block[index + 1 :].addr_(moves[index, index + 1 :], error, alpha=-1)
        rest[stop:].addmm_(upper[start:stop, stop:].t(), errors[: stop - start], alpha=-1)
    rest *= keep
    return rest, keep


def refit(weight: Tensor, pruned: Tensor, keep: Tensor, gram: Tensor, steps: int) -> Tensor:
    """Weights that stay, moved towards the least tr((W - Q) G (W - Q)T) with the same zeros.

    `steps` of conjugate gradients on every row at once, scaled by the gram's diagonal. weight,
    pruned: [rows, width]; keep: the mask; gram: [width, width], definite.
    """
    found, scale = pruned * keep, gram.diagonal()
    residual = ((weight - found) @ gram).mul_(keep)
    step = residual / scale
    size = (residual * step).sum(1, keepdim=True)
    moved, scaled = torch.empty_like(step), torch.empty_like(step)
    for _ in range(steps):
        torch.mm(step, gram, out=moved).mul_(keep)
        length = size / torch.mul(step, moved, out=scaled).sum(1, keepdim=True).clamp_min(1e-30)
        found.addcmul_(length, step)
        residual.addcmul_(length, moved, value=-1)
        torch.div(residual, scale, out=scaled)
        before, size = size, torch.mul(residual, scaled, out=moved).sum(1, keepdim=True)
        step.mul_(size / before.clamp_min(1e-30)).add_(scaled)
    return found


def _highest(scores: Tensor, count: int) -> Tensor:
    """The `count` highest scores of each row, as a mask; of equal ones the first."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = scores.kthvalue(scores.shape[1] - count + 1, dim=1, keepdim=True).values
    above, level = scores > least, scores == least
    room = count - above.sum(1, keepdim=True)
    return above | (level & (level.cumsum(1) <= room))


def _in_runs(scores: Tensor, kept: int, run: int) -> Tensor:
    rows, width = scores.shape
    padded = functional.pad(scores, (0, -width % run), value=-torch.inf)
    mask = _highest(padded.reshape(-1, run), kept)
    return mask.reshape(rows, -1)[:, :width]
