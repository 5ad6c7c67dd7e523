"""What is kept of a teacher's distribution: its likeliest classes and the rest, or a sample.

Logits are [positions, classes]. Packed, an entry is one word of 3 bytes (4 where classes are more
than 2^18): the class in the low bits, a code in what is left of them. What belongs to a whole
position is in steps of 1/512 in 16 bits. 64 entries are 200 bytes as `Top` and 196 as `Sample`.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor

from attar.ops.divergence import Divergence, Found, log_probabilities, measured
from attar.ops.words import STEP, coded, entries_of, levels_of, words_of

KNOTS = (0.5, 1.0, 2.0)  # powers of the probabilities at which the odds of the rest are kept
COLDEST = 1 / KNOTS[-1]  # temperature, below which nothing is known of the rest
_LEAST = -60.0  # log odds of a rest that is not there
_RAREST = 1e-12  # the least probability: no rarer class is told from another

Packed = dict[str, Tensor]  # words: uint8 [positions, bytes]; numbers: int16 [positions, some]


@dataclass(frozen=True)
class Top:
    """The likeliest classes with their log-probabilities, and all others as one lump of mass.

    ids, logs: [positions, entries], the likeliest first; logs are in nats, each position's up to
    a constant; odds: [positions, knots], log of the others' sum of p^a over that of the kept, for
    a in `KNOTS`; others: how many classes the lump holds.

    A divergence compares entries + 1 outcomes. Lumping can only lower a divergence (data
    processing), so what it tells is a lower bound, exact where student and teacher share out the
    lump alike; no gradient says how to do that.
    """

    ids: Tensor
    logs: Tensor
    odds: Tensor
    others: int

    @classmethod
    def of(cls, logits: Tensor, entries: int) -> Top:
        """The sketch of logits, [positions, classes]."""
        own = log_probabilities(logits, 1.0)
        logs, ids = own.topk(min(entries, own.shape[-1]))
        odds = [_rest(own, ids, power) - (power * logs).logsumexp(-1) for power in KNOTS]
        return cls(ids, logs, torch.stack(odds, -1), own.shape[-1] - ids.shape[-1])

    @classmethod
    def told(cls, ids: Tensor, logs: Tensor, classes: int) -> Top:
        """The sketch where only the likeliest are known: the rest is taken to be spread evenly.

        ids, logs: [positions, entries], log-probabilities at temperature 1. At other
        temperatures an even rest weighs more than a real one would.
        """
        logs, order = logs.sort(-1, descending=True)
        others = classes - ids.shape[-1]
        rest = (1 - logs.exp().sum(-1)).clamp_min(1e-9)
        many = log(max(others, 1))
        odds = [
            many + power * (rest.log() - many) - (power * logs).logsumexp(-1) for power in KNOTS
        ]
        return cls(ids.gather(-1, order), logs, torch.stack(odds, -1), others)

    def __getitem__(self, part: Any) -> Top:
        return Top(self.ids[part], self.logs[part], self.odds[part], self.others)

    def to(self, device: torch.device | str) -> Top:
        """The same on a device."""
        return Top(self.ids.to(device), self.logs.to(device), self.odds.to(device), self.others)

    def outcomes(self, temperature: float) -> Tensor:
        """Log-probabilities at a temperature of the entries and of the lump, [n, entries + 1].

        The odds between the knots are a cubic in 1/temperature, exact at 0, where all classes
        weigh the same.
        """
        power = 1 / temperature
        flat = log(self.others / self.ids.shape[-1]) if self.others else _LEAST
        first, *weights = _lagrange((0.0, *KNOTS), power)
        odds = self.odds @ self.odds.new_tensor(weights) + first * flat
        kept = (power * self.logs).log_softmax(-1)
        return torch.cat([kept, odds.unsqueeze(-1)], -1).log_softmax(-1)

    def measured(
        self, student: Tensor, divergence: Divergence, temperature: float, share: float, slope: bool
    ) -> Found:
        """The divergence of each position over entries and lump, as `divergence.measured`.

        student: logits [positions, classes]. Its own lump is the sum of what it gives to the
        others, each of which gets its share of the lump's slope.
        """
        if divergence == "hard":
            return _toward_best(student, self.ids[:, 0], slope)
        own = log_probabilities(student, temperature)
        kept, rest = own.gather(-1, self.ids), own.exp_().scatter_(-1, self.ids, 0.0)
        mass = rest.sum(-1, keepdim=True).clamp_min(1e-30)
        theirs = self.outcomes(temperature).to(own.dtype)
        outcomes = torch.cat([kept, mass.log()], -1)
        found = measured(outcomes, theirs, divergence, 1.0, share, slope)
        if found.slope is None:
            return Found(found.each * temperature**2, None)
        pull = rest.mul_(found.slope[:, -1:] / mass).scatter_(-1, self.ids, found.slope[:, :-1])
        return Found(found.each * temperature**2, pull.mul_(temperature))

    def packed(self) -> Packed:
        """As bytes. Codes are squares of what a log-probability is below the highest.

        So steps are finest where the probabilities are high: where the lowest entry is e^-10 of the
        highest, one of half the highest is off by 0.01 nats at most with 2^16 classes, and by
        four times that with 2^18.
        """
        below = (self.logs[:, :1] - self.logs).clamp(0, -_LEAST)
        spread = coded(below[:, -1:])
        unit = spread.double().mul(STEP).clamp_min(STEP)
        levels = levels_of(self.ids.shape[-1] + self.others)
        codes = (below.double() / unit).clamp(0, 1).sqrt().mul(levels).round().long()
        words = words_of(self.ids, codes, self.ids.shape[-1] + self.others)
        return {"words": words, "numbers": torch.cat([spread, coded(self.odds)], -1)}

    @classmethod
    def unpacked(cls, packed: Packed, classes: int) -> Top:
        """The sketch of so many classes that was packed."""
        ids, codes = entries_of(packed["words"], classes)
        numbers = packed["numbers"].float() * STEP
        shares = codes.float() / levels_of(classes)
        logs = -numbers[:, :1].clamp_min(STEP) * shares.square()
        return cls(ids, logs, numbers[:, 1:], classes - ids.shape[-1])


@dataclass(frozen=True)
class Sample:
    """The likeliest classes as they are and others drawn for the rest, and the entropy.

    ids: [positions, entries], none twice; codes: the same shape, the square root of what each
    weighs above the least, in steps; spread: [positions, 1], the logarithm of the highest weight
    over the least, in 1/512; entropy: [positions], in nats; classes: how many there are. Over the
    draws, KL(teacher ||
    student) at temperature 1 and its gradient are unbiased, whatever the tail (why a sample and
    not the likeliest alone: Anshumann et al. 2025, Sparse Logit Sampling, arXiv:2503.16870,
    section 3); other divergences are not linear in the teacher's probabilities, and have no such
    estimate.
    """

    ids: Tensor
    codes: Tensor
    spread: Tensor
    entropy: Tensor
    classes: int

    @classmethod
    def of(cls, logits: Tensor, entries: int, starts: Tensor) -> Sample:
        """A sample with a threshold t: a class of probability p is in it with min(1, p / t).

        It weighs max(p, t), and t is such that the chances add up to `entries`: of all samples of
        this size the one whose weights vary least (Duffield, Lund and Thorup 2005, "Learn more,
        sample less", section 3). It is drawn systematically, every draw one step further on the
        cumulated chances, which fixes its size (Madow and Madow 1944). starts: [positions],
        uniform in [0, 1).
        """
        own = log_probabilities(logits, 1.0)
        entries = min(entries, own.shape[-1])
        mass = own.exp()
        with torch.autocast(own.device.type, enabled=False):  # it would round to bf16
            entropy = -torch.linalg.vecdot(mass, own)
        mass.clamp_min_(_RAREST)
        threshold = _threshold(mass, entries)
        chances = (mass / threshold).clamp_(max=1.0).cumsum(-1, dtype=torch.float64)
        starts = starts.to(own.device).double().unsqueeze(-1)
        places = (starts + torch.arange(entries, device=own.device)) * (chances[:, -1:] / entries)
        ids = torch.searchsorted(chances, places, right=True).clamp_(max=own.shape[-1] - 1)
        weights = mass.gather(-1, ids).double().maximum(threshold)
        least, most = weights.aminmax(dim=-1, keepdim=True)
        spread = coded((most / least).log())
        codes = _by_chance(weights / most, _least(spread), levels_of(own.shape[-1]), starts)
        return cls(ids, codes, spread, entropy, own.shape[-1])

    @property
    def weights(self) -> Tensor:
        """What each entry stands for, in sum 1: [positions, entries]."""
        share, least = self.codes.double() / levels_of(self.classes), _least(self.spread)
        weights = least + (1 - least) * share.square()
        return (weights / weights.sum(-1, keepdim=True)).float()

    def __getitem__(self, part: Any) -> Sample:
        spread, entropy = self.spread[part], self.entropy[part]
        return Sample(self.ids[part], self.codes[part], spread, entropy, self.classes)

    def to(self, device: torch.device | str) -> Sample:
        """The same on a device."""
        ids, codes = self.ids.to(device), self.codes.to(device)
        return Sample(ids, codes, self.spread.to(device), self.entropy.to(device), self.classes)

    def measured(
        self, student: Tensor, divergence: Divergence, temperature: float, share: float, slope: bool
    ) -> Found:
        """The estimate of `forward` at temperature 1 of each position, with its slope."""
        if divergence != "forward" or temperature != 1.0:
            raise ValueError("a sample tells the forward divergence at temperature 1 alone")
        own = log_probabilities(student, 1.0)
        weights = self.weights.to(own.dtype)
        each = -(own.gather(-1, self.ids) * weights).sum(-1) - self.entropy.to(own.dtype)
        return Found(each, own.exp_().scatter_add_(-1, self.ids, -weights) if slope else None)

    def packed(self) -> Packed:
        """As bytes."""
        numbers = torch.cat([coded(self.entropy.unsqueeze(-1)), self.spread], -1)
        return {"words": words_of(self.ids, self.codes, self.classes), "numbers": numbers}

    @classmethod
    def unpacked(cls, packed: Packed, classes: int) -> Sample:
        """The sample of so many classes that was packed."""
        ids, codes = entries_of(packed["words"], classes)
        numbers = packed["numbers"]
        return cls(ids, codes, numbers[:, 1:], numbers[:, 0].float() * STEP, classes)


def _threshold(mass: Tensor, entries: int) -> Tensor:
    """The t at which the sum of min(1, mass / t) is `entries`: float64 [positions, 1].

    With the k heaviest classes certain, the others share what is left of the entries.
    """
    heaviest = mass.topk(entries).values.double()
    rest = mass.sum(-1, keepdim=True, dtype=torch.float64) - heaviest.cumsum(-1) + heaviest
    found = rest / (entries - torch.arange(entries, device=mass.device))
    first = (heaviest <= found * (1 + 1e-3)).to(torch.uint8).argmax(-1, keepdim=True)
    return found.gather(-1, first)


def _least(spread: Tensor) -> Tensor:
    """The least weight over the highest: float64."""
    return spread.double().mul(-STEP).exp()


def _by_chance(weights: Tensor, least: Tensor, levels: int, starts: Tensor) -> Tensor:
    """Codes of weights up to 1, up or down by chance, so that the weight is right on average.

    Steps are of at most 2/levels of the highest weight, and finer below. The chance follows from
    the starts.
    """
    above = ((weights - least) / (1 - least).clamp_min(1e-12)).clamp(0, 1)
    low = (above.sqrt() * levels).floor().clamp_(max=levels - 1)
    inside = (above * levels**2 - low**2) / (2 * low + 1)
    order = torch.arange(1, weights.shape[-1] + 1, device=weights.device)
    return (low + (inside > (starts * 4093 + order * 0.6180339887498949) % 1)).long()


def _rest(own: Tensor, ids: Tensor, power: float) -> Tensor:
    """Log of the sum of p^power over all classes but these."""
    total = (power * own).exp_().scatter_(-1, ids, 0.0).sum(-1)
    return total.log().clamp_min(_LEAST)


def _lagrange(places: Sequence[float], at: float) -> list[float]:
    """What each value counts in the polynomial through all of them."""
    weights: list[float] = []
    for place in places:
        weight = 1.0
        for other in places:
            weight *= 1.0 if other == place else (at - other) / (place - other)
        weights.append(weight)
    return weights


def _toward_best(student: Tensor, best: Tensor, slope: bool) -> Found:
    own = log_probabilities(student, 1.0)
    where = best.unsqueeze(-1)
    each = -own.gather(-1, where).squeeze(-1)
    if not slope:
        return Found(each, None)
    return Found(each, own.exp_().scatter_add_(-1, where, -torch.ones_like(where, dtype=own.dtype)))
