"""The numbers that a quantized tensor may take."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

ALIASES = {"q4_0": "int4-g32", "q8_0": "int8-g32"}
GROUPS = (128, 64, 32)
_NAME = re.compile(r"int(?P<bits>[2348])-(?:channel|g(?P<group>32|64|128))(?P<zero>-zp)?")


class Grid(BaseModel):
    """An integer grid: code range, group of inputs that share a scale, zero point or none.

    Symmetric n-bit codes run from -2^(n-1) to 2^(n-1)-1 (8 bits: -127 to 127). A grid with
    a zero point has codes from 0 to 2^n-1. Scales have at most 8 significant bits within
    float16's normal range, so float16, bfloat16 and float32 containers hold the same value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: int
    group: int | None = None
    zero_point: bool = False

    @classmethod
    def parse(cls, name: str) -> Grid:
        """Read a grid's name, such as `int4-g64`, `int8-channel`, `int4-g32-zp` or `q4_0`."""
        match = _NAME.fullmatch(ALIASES.get(name, name))
        if match is None:
            raise ValueError(
                f"no grid is called {name!r}; did you mean {_nearest(name)!r}? A grid is int2, "
                "int3, int4 or int8, then -channel, -g32, -g64 or -g128, then -zp if it has a "
                "zero point; q4_0 is int4-g32 and q8_0 is int8-g32"
            )
        group = match["group"]
        return cls(
            bits=int(match["bits"]),
            group=int(group) if group else None,
            zero_point=match["zero"] is not None,
        )

    @property
    def name(self) -> str:
        """The canonical name, `int4-g64` say."""
        group = "channel" if self.group is None else f"g{self.group}"
        return f"int{self.bits}-{group}{'-zp' if self.zero_point else ''}"

    @property
    def low(self) -> int:
        """The smallest code."""
        if self.zero_point:
            return 0
        return -127 if self.bits == 8 else -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest code."""
        return 2**self.bits - 1 if self.zero_point else 2 ** (self.bits - 1) - 1

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
    match = re.fullmatch(r"int(\d{1,3})(?:-(channel|g(\d{1,4}))(-zp)?)?", name)
    if match is not None:
        bits = min((2, 3, 4, 8), key=lambda known: abs(known - int(match[1])))
        size = int(match[3] or 64)
        group = f"g{min(GROUPS, key=lambda known: abs(known - size))}"
        if match[2] == "channel" or (match[2] is None and bits == 8):
            group = "channel"
        return f"int{bits}-{group}{match[4] or ''}"
    groups = ("channel", *(f"g{size}" for size in GROUPS))
    names = [f"int{b}-{g}{z}" for b in (2, 3, 4, 8) for g in groups for z in ("", "-zp")]
    return get_close_matches(name, [*names, *ALIASES], n=1, cutoff=0.0)[0]


def _canonical(name: str) -> str:
    return Grid.parse(name).name


GridName = Annotated[str, AfterValidator(_canonical)]
