"""A signal: how tokens relate to each other inside attention."""

from __future__ import annotations

from math import gcd
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.errors import UserError
from attar.ops.alike import maps_kl, relations_kl, scores_missed
from attar.techniques.distill._hidden import Layers, followed
from attar.train.signals import Compared, Sight, Signal
from attar.train.watched import Watched, unscored

_KINDS = ("queries", "keys", "values")

Pairs = list[tuple[int, int]]  # blocks of the student, each with the teacher's that it follows
Relations = tuple[Literal["queries", "keys", "values", "maps", "scores"], ...]


class AttentionSignal(Signal):
    """Which relations the student's blocks learn, and from which of the teacher's blocks."""

    block: int = Field(
        -1,
        description="the teacher's block, for the student's last one; of a deep one, one before "
        "its last ones may do better",
    )
    layers: Layers | None = Field(
        None,
        description="instead of `block`: every block of the student learns, from the teacher's "
        "block that distill/hidden has it follow by its setting of this name",
    )
    relations: Relations = Field(
        _KINDS,
        min_length=1,
        description="what is related: queries to queries, and so on; or maps, attention's own "
        "shares, head by head where both have as many; or scores, which the shares are the softmax "
        "of, for encoders of as many heads that rotate nothing",
    )
    heads: int | None = Field(
        None,
        ge=1,
        description="relation heads; by default the most that divide all widths, and no more than "
        "the teacher's own heads",
    )

    @model_validator(mode="after")
    def _one_map(self) -> Self:
        if self.layers is not None and self.block != -1:
            raise ValueError("block and layers both say which of the teacher's blocks; keep one")
        return self

    @property
    def maps(self) -> bool:
        """Whether attention's own maps are among what is related."""
        return "maps" in self.relations

    def compared(self, student: Sight, teacher: Sight, mask: Tensor) -> Compared:
        """Nothing of it is trained."""
        pairs = self._pairs(student, teacher, mask)
        if "scores" in self.relations:
            _insist(pairs, student, teacher)
        kinds = [_KINDS.index(kind) for kind in self.relations if kind in _KINDS]
        heads = self._heads(pairs, kinds, student, teacher) if kinds else 1
        return _Attention(pairs, kinds, heads, self.relations)

    def _pairs(self, student: Sight, teacher: Sight, mask: Tensor) -> Pairs:
        if self.layers is not None:
            return followed(self.layers, student, teacher, mask)
        count = len(teacher.model.blocks)
        if not -count <= self.block < count:
            raise UserError(
                f"distill/attention: the teacher has blocks 0 to {count - 1}, none {self.block}"
            )
        return [(len(student.model.blocks) - 1, self.block % count)]

    def _heads(self, pairs: Pairs, kinds: list[int], student: Sight, teacher: Sight) -> int:
        """How many relation heads all that is related is cut into."""
        made = [part for i, j in pairs for part in (student.made.qkv(i), teacher.made.qkv(j))]
        common = gcd(*(part[kind].shape[-1] for part in made for kind in kinds))
        limit = self.heads or teacher.model.sizes.queries
        heads = max(number for number in range(1, limit + 1) if common % number == 0)
        if self.heads not in (None, heads):
            raise UserError(
                f"distill/attention: {self.heads} heads do not divide all widths of teacher and "
                f"student; {heads} do"
            )
        return heads


class _Attention(Compared):
    def __init__(self, pairs: Pairs, kinds: list[int], heads: int, relations: Relations) -> None:
        super().__init__()
        self.pairs, self.kinds, self.heads, self.relations = pairs, kinds, heads, relations

    def forward(self, own: Watched, theirs: Watched, mask: Tensor) -> Tensor:
        losses: list[Tensor] = []
        for i, j in self.pairs:
            one, other = own.qkv(i), theirs.qkv(j)
            losses += [
                relations_kl(one[kind], other[kind], self.heads, mask) for kind in self.kinds
            ]
            if "maps" in self.relations:
                shares, wanted = own.maps[i], theirs.maps[j]
                if shares is None or wanted is None:
                    raise UserError("distill/attention: the attention of this family tells no maps")
                losses.append(maps_kl(shares, wanted, mask))
            if "scores" in self.relations:
                losses.append(scores_missed(own.scores(i), theirs.scores(j), mask))
        return torch.stack(losses).mean()


def _insist(pairs: Pairs, student: Sight, teacher: Sight) -> None:
    """Raise UserError where scores cannot be told, or not compared head by head."""
    for whose, sight in (("student", student), ("teacher", teacher)):
        if reason := unscored(sight.model):
            raise UserError(
                f"distill/attention: the {whose}'s scores cannot be told by its queries and keys: "
                f"{reason}. Take `relations: [maps]`"
            )
    for i, j in pairs:
        few, many = student.made.heads(i), teacher.made.heads(j)
        if few != many:
            raise UserError(
                f"distill/attention: scores are compared head by head, and block {i} of the "
                f"student has {few}, block {j} of the teacher {many}. Take `relations: [maps]`, "
                "whose mean over heads is compared then"
            )
