"""The numbers that a quantized tensor may take."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict

from attar.core.levels import LEVELS, PEAKS, Numbers

ALIASES = {
    "q4_0": "int4-g32",
    "q4_1": "int4-g32-min",
    "q8_0": "int8-g32",
    "nf4": "nf4-g64",
    "fp8-e4m3": "fp8-e4m3-channel",
    "mxfp4": "mxfp4-g32",
}
GROUPS = (128, 64, 32)
Offset = Literal["none", "zero", "minimum"]
_ENDINGS: dict[Offset, str] = {"none": "", "zero": "-zp", "minimum": "-min"}
_NAME = re.compile(
    r"(?:int(?P<bits>[2348])|(?P<table>nf4|fp8-e4m3|mxfp4(?=-g32$)))"
    r"-(?:channel|g(?P<group>32|64|128))(?P<ending>(?(bits)(?:-zp|-min)?))"
)


class Grid(BaseModel):
    """Levels, the group of inputs that share a scale, and what is added to the levels.

    A weight is scale * level, the levels being whole numbers or those of a table. Symmetric
    n-bit codes run from -2^(n-1) to 2^(n-1)-1 (8 bits: -127 to 127). With an offset codes run
    from 0 to 2^n-1: a level is the code less an integer zero point, or a minimum is added to
    the product. Codes of a table are the bits of its own format. Scales and minima have at
    most 8 significant bits within float16's normal range, so float16, bfloat16 and float32
    containers hold the same value; those of `mxfp4` are powers of two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: int
    group: int | None = None
    offset: Offset = "none"
    numbers: Numbers = "int"

    @classmethod
    def parse(cls, name: str) -> Grid:
        """Read a grid's name, such as `int4-g64`, `int8-channel`, `int4-g32-zp` or `q4_0`."""
        match = _NAME.fullmatch(ALIASES.get(name, name))
        if match is None:
            raise ValueError(
                f"no grid is called {name!r}; did you mean {_nearest(name)!r}? A grid is int2, "
                "int3, int4, int8, nf4 or fp8-e4m3, then -channel, -g32, -g64 or -g128, or it is "
                "mxfp4-g32; integers may end in -zp for a zero point, or in -min for a minimum. "
                + ", ".join(f"{alias} is {full}" for alias, full in ALIASES.items())
            )
        numbers, group = cast("Numbers", match["table"] or "int"), match["group"]
        return cls(
            bits=int(match["bits"] or len(LEVELS[numbers]).bit_length() - 1),
            group=int(group) if group else None,
            offset=next(kind for kind, end in _ENDINGS.items() if end == match["ending"]),
            numbers=numbers,
        )

    @property
    def name(self) -> str:
        """The canonical name, `int4-g64` say."""
        numbers = f"int{self.bits}" if self.numbers == "int" else self.numbers
        group = "channel" if self.group is None else f"g{self.group}"
        return f"{numbers}-{group}{_ENDINGS[self.offset]}"

    @property
    def levels(self) -> tuple[float, ...] | None:
        """What each code stands for, in units of the scale; None where that is a whole number."""
        return LEVELS.get(self.numbers)

    @property
    def zero_point(self) -> bool:
        """Whether each group has an integer that is taken off its codes."""
        return self.offset == "zero"

    @property
    def minimum(self) -> bool:
        """Whether each group has a float that is added; it then holds no exact zero."""
        return self.offset == "minimum"

    @property
    def powers(self) -> bool:
        """Whether scales are powers of two."""
        return self.numbers == "mxfp4"

    @property
    def low(self) -> int:
        """The smallest code."""
        if self.offset != "none" or self.levels is not None:
            return 0
        return -127 if self.bits == 8 else -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest code."""
        return 2**self.bits - 1 if self.low == 0 else 2 ** (self.bits - 1) - 1

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest level, of codes without an offset."""
        peak = PEAKS.get(self.numbers)
        return (self.low, self.high) if peak is None else (-peak, peak)

    def group_for(self, width: int) -> int:
        """Inputs that share a scale in a row of this width.

        The largest of 128, 64 and 32 that is not above the group asked for and divides the
        width. Where none does, the group asked for, and the last group of a row is shorter.
        """
        if self.group is None:
            return width
        for size in GROUPS:
            if size <= self.group and width % size == 0:
                return size
        return min(self.group, width)


def _nearest(name: str) -> str:
    """The grid that was most likely meant: the nearest number of bits and group, or spelling."""
    name = name.lower()
    match = re.fullmatch(r"int(\d{1,3})(?:-(channel|g(\d{1,4}))(-zp|-min)?)?", name)
    if match is not None:
        bits = min((2, 3, 4, 8), key=lambda known: abs(known - int(match[1])))
        size = int(match[3] or 64)
        group = f"g{min(GROUPS, key=lambda known: abs(known - size))}"
        if match[2] == "channel" or (match[2] is None and bits == 8):
            group = "channel"
        return f"int{bits}-{group}{match[4] or ''}"
    groups = ("channel", *(f"g{size}" for size in GROUPS))
    ends = _ENDINGS.values()
    names = [f"int{b}-{g}{end}" for b in (2, 3, 4, 8) for g in groups for end in ends]
    names += [f"{table}-{g}" for table in LEVELS for g in groups]
    known = [name for name in [*names, *ALIASES] if name in ALIASES or _NAME.fullmatch(name)]
    return get_close_matches(name, known, n=1, cutoff=0.0)[0]


def _canonical(name: str) -> str:
    return Grid.parse(name).name


def _of_integers(name: str) -> str:
    grid = Grid.parse(name)
    if grid.levels is not None or grid.minimum:
        raise ValueError(
            f"inputs at 8 bits multiply with whole numbers, and {name} holds others. Take "
            "int8-channel, or another grid of integers"
        )
    return name


GridName = Annotated[str, AfterValidator(_canonical)]
IntegerGridName = Annotated[GridName, AfterValidator(_of_integers)]
