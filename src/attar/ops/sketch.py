"""What is kept of a teacher's distribution: its likeliest classes and the rest, or a sample.

Logits are [positions, classes]. Packed, an entry is one word of 3 bytes (4 where classes are more
than 2^18): the class in the low bits, a code in what is left of them. What belongs to a whole
position is in steps of 1/512 in 16 bits. 64 entries are 200 bytes as `Top` and 194 as `Sample`.
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

KNOTS = (0.5, 1.0, 2.0)  # powers of the probabilities at which the odds of the rest are kept
COLDEST = 1 / KNOTS[-1]  # temperature, below which nothing is known of the rest
_STEP = 1 / 512  # of 16-bit numbers, which so reach from -64 to 64
_LEAST = -60.0  # log odds of a rest that is not there
_SHORT, _LONG = 3, 4  # bytes of a word
_WIDEST = 18  # bits of a class in a short word: 6 are left for the code

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
        spread = _coded(below[:, -1:])
        unit = spread.double().mul(_STEP).clamp_min(_STEP)
        levels = _levels(self.ids.shape[-1] + self.others)
        codes = (below.double() / unit).clamp(0, 1).sqrt().mul(levels).round().long()
        words = _words(self.ids, codes, self.ids.shape[-1] + self.others)
        return {"words": words, "numbers": torch.cat([spread, _coded(self.odds)], -1)}

    @classmethod
    def unpacked(cls, packed: Packed, classes: int) -> Top:
        """The sketch of so many classes that was packed."""
        ids, codes = _entries(packed["words"], classes)
        numbers = packed["numbers"].float() * _STEP
        shares = codes.float() / _levels(classes)
        logs = -numbers[:, :1].clamp_min(_STEP) * shares.square()
        return cls(ids, logs, numbers[:, 1:], classes - ids.shape[-1])


@dataclass(frozen=True)
class Sample:
    """Classes drawn from the distribution, each counting the same, and the entropy.

    ids: [positions, draws], a class as often as it was drawn; entropy: [positions], in nats;
    classes: how many there are. Over the draws, KL(teacher || student) at temperature 1 and its
    gradient are unbiased (Anshumann et al. 2025, Sparse Logit Sampling, arXiv:2503.16870,
    section 3), whatever the tail; other divergences are not linear in the teacher's
    probabilities, and have no such estimate.
    """

    ids: Tensor
    entropy: Tensor
    classes: int

    @classmethod
    def of(cls, logits: Tensor, draws: int, starts: Tensor) -> Sample:
        """A systematic sample: every draw one step of 1/draws further on the cumulated mass.

        starts: [positions], uniform in [0, 1). A class of probability p is drawn p x draws times
        on average, and never a whole draw more or less (Madow and Madow 1944), where draws that
        know nothing of each other vary by sqrt(p x draws).
        """
        own = log_probabilities(logits, 1.0)
        mass = own.exp()
        places = (starts.double().unsqueeze(-1) + torch.arange(draws, device=own.device)) / draws
        summed = mass.cumsum(-1, dtype=torch.float64)
        ids = torch.searchsorted(summed, places.to(own.device) * summed[:, -1:], right=True)
        with torch.autocast(own.device.type, enabled=False):  # it would round to bf16
            entropy = -torch.linalg.vecdot(mass, own)
        return cls(ids.clamp_max(own.shape[-1] - 1), entropy, own.shape[-1])

    def __getitem__(self, part: Any) -> Sample:
        return Sample(self.ids[part], self.entropy[part], self.classes)

    def to(self, device: torch.device | str) -> Sample:
        """The same on a device."""
        return Sample(self.ids.to(device), self.entropy.to(device), self.classes)

    def measured(
        self, student: Tensor, divergence: Divergence, temperature: float, share: float, slope: bool
    ) -> Found:
        """The estimate of `forward` at temperature 1 of each position, with its slope."""
        if divergence != "forward" or temperature != 1.0:
            raise ValueError("a sample tells the forward divergence at temperature 1 alone")
        own = log_probabilities(student, 1.0)
        each = -own.gather(-1, self.ids).mean(-1) - self.entropy.to(own.dtype)
        if not slope:
            return Found(each, None)
        less = own.new_full(self.ids.shape, -1 / self.ids.shape[-1])
        return Found(each, own.exp_().scatter_add_(-1, self.ids, less))

    def packed(self) -> Packed:
        """As bytes."""
        words = _words(self.ids, torch.zeros_like(self.ids), self.classes)
        return {"words": words, "numbers": _coded(self.entropy.unsqueeze(-1))}

    @classmethod
    def unpacked(cls, packed: Packed, classes: int) -> Sample:
        """The sample of so many classes that was packed."""
        ids, _ = _entries(packed["words"], classes)
        return cls(ids, packed["numbers"][:, 0].float() * _STEP, classes)


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


def _coded(values: Tensor) -> Tensor:
    return (values / _STEP).round().clamp(-(2**15) + 1, 2**15 - 1).to(torch.int16)


def _bits(classes: int) -> tuple[int, int]:
    """Bits of a class, and bytes of a word."""
    bits = max(1, (classes - 1).bit_length())
    return bits, _SHORT if bits <= _WIDEST else _LONG


def _levels(classes: int) -> int:
    bits, size = _bits(classes)
    return 2 ** (8 * size - bits) - 1


def _words(ids: Tensor, codes: Tensor, classes: int) -> Tensor:
    bits, size = _bits(classes)
    word = codes << bits | ids
    parts = [(word >> (8 * place)) & 255 for place in range(size)]
    return torch.stack(parts, -1).flatten(1).to(torch.uint8)


def _entries(words: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    bits, size = _bits(classes)
    parts = words.view(len(words), -1, size).long()
    word = sum((parts[..., place] << (8 * place) for place in range(size)), parts.new_zeros(()))
    return word & ((1 << bits) - 1), word >> bits
