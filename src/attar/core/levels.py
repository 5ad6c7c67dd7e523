"""Levels that are no whole numbers: the formats of a few bits that papers and engines fixed."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

Numbers = Literal["int", "nf4", "fp8-e4m3", "mxfp4"]


@dataclass(frozen=True)
class MiniFloat:
    """A float of a sign, an exponent and a mantissa, in this order; subnormals, no infinities.

    `lost` are the patterns at the upper end of either sign that stand for no number.
    """

    exponent: int
    mantissa: int
    bias: int
    lost: int = 0

    @property
    def smallest(self) -> float:
        """The smallest normal number."""
        return 2.0 ** (1 - self.bias)

    @property
    def levels(self) -> tuple[float, ...]:
        """The number of each pattern, NaN for those that have none."""
        size, count = 1 << self.mantissa, 1 << (self.exponent + self.mantissa)
        found: list[float] = []
        for code in range(count - self.lost):
            power, rest = divmod(code, size)
            found.append((rest / size + (power > 0)) * 2.0 ** (max(power, 1) - self.bias))
        found += [float("nan")] * self.lost
        return (*found, *(-value for value in found))


def _nf4() -> tuple[float, ...]:
    """The 4-bit NormalFloat (Dettmers et al. 2023, QLoRA, arXiv 2305.14314, appendix E).

    Quantiles of a normal distribution at even steps of probability: eight from the upper end
    down to the middle, seven from the lower end up to it, and an exact zero; 1 is the largest.
    """
    tail = 1 - (1 / 32 + 1 / 30) / 2

    def half(count: int) -> list[float]:
        steps = (tail + (0.5 - tail) * step / count for step in range(count))
        return [NormalDist().inv_cdf(probability) for probability in steps]

    above, below = half(8), half(7)
    levels = sorted([*above, 0.0, *(-value for value in below)])
    return tuple(level / above[0] for level in levels)


# OCP FP8 E4M3 ends at 448, its last pattern being NaN; E2M1 is that of OCP Microscaling (MX) 1.0
FLOATS: dict[Numbers, MiniFloat] = {
    "fp8-e4m3": MiniFloat(4, 3, 7, lost=1),
    "mxfp4": MiniFloat(2, 1, 1),
}
LEVELS: dict[Numbers, tuple[float, ...]] = {
    "nf4": _nf4(),
    **{name: kind.levels for name, kind in FLOATS.items()},
}
PEAKS: dict[Numbers, float] = {
    name: max(level for level in levels if level == level) for name, levels in LEVELS.items()
}
