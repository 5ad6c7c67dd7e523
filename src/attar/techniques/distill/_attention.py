"""A signal: how tokens relate to each other inside attention."""

from __future__ import annotations

from math import gcd
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from attar.errors import UserError
from attar.ops.alike import maps_kl, relations_kl
from attar.train.signals import Compared, Sight, Signal
from attar.train.watched import Watched

_KINDS = ("queries", "keys", "values")


class AttentionSignal(Signal):
    """Which relations the student's last block learns from which of the teacher's blocks."""

    block: int = Field(
        -1, description="the teacher's block; of a deep one, one before its last ones may do better"
    )
    relations: tuple[Literal["queries", "keys", "values", "maps"], ...] = Field(
        _KINDS,
        min_length=1,
        description="what is related: queries to queries, and so on; or maps, attention's own "
        "shares, head by head where both have as many",
    )
    heads: int | None = Field(
        None,
        ge=1,
        description="relation heads; by default the most that divide all widths, and no more than "
        "the teacher's own heads",
    )

    @property
    def maps(self) -> bool:
        """Whether attention's own maps are among what is related."""
        return "maps" in self.relations

    def compared(self, student: Sight, teacher: Sight, mask: Tensor) -> Compared:
        """Nothing of it is trained."""
        count = len(teacher.model.blocks)
        if not -count <= self.block < count:
            raise UserError(
                f"distill/attention: the teacher has blocks 0 to {count - 1}, none {self.block}"
            )
        one, other = student.made.qkv(-1), teacher.made.qkv(self.block)
        kinds = [_KINDS.index(kind) for kind in self.relations if kind != "maps"]
        if not kinds:
            return _Attention(self.block % count, [], 1, self.maps)
        common = gcd(*(part.shape[-1] for kind in kinds for part in (one[kind], other[kind])))
        limit = self.heads or teacher.model.sizes.queries
        heads = max(number for number in range(1, limit + 1) if common % number == 0)
        if self.heads not in (None, heads):
            raise UserError(
                f"distill/attention: {self.heads} heads do not divide all widths of teacher and "
                f"student; {heads} do"
            )
        return _Attention(self.block % count, kinds, heads, self.maps)


class _Attention(Compared):
    def __init__(self, block: int, kinds: list[int], heads: int, maps: bool) -> None:
        super().__init__()
        self.block, self.kinds, self.heads, self.maps = block, kinds, heads, maps

    def forward(self, own: Watched, theirs: Watched, mask: Tensor) -> Tensor:
        one, other = own.qkv(-1), theirs.qkv(self.block)
        losses = [relations_kl(one[kind], other[kind], self.heads, mask) for kind in self.kinds]
        if self.maps:
            shares, wanted = own.maps[-1], theirs.maps[self.block]
            if shares is None or wanted is None:
                raise UserError("distill/attention: the attention of this family tells no maps")
            losses.append(maps_kl(shares, wanted, mask))
        return torch.stack(losses).mean()
