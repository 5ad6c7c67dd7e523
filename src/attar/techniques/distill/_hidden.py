"""A signal: how far hidden states are from the teacher's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.errors import UserError
from attar.ops.alike import alignment, in_order, missed, turned
from attar.ops.gram import damped
from attar.train.signals import Compared, Sight, Signal
from attar.train.watched import Watched

_RIDGE = 1e-3  # of the mean energy of an input, in the projections that training starts from


Distance = Callable[[Tensor, Tensor, Tensor], Tensor]
Layers = Literal["uniform", "last", "searched"]


class HiddenSignal(Signal):
    """Which blocks of the teacher the student's blocks follow, and how far they are from them."""

    layers: Layers = Field(
        "uniform",
        description="which of the teacher's blocks each of the student's follows. uniform: at even "
        "distances; last: the teacher's last ones; searched: in order, those whose states are most "
        "alike at the start (CKA)",
    )
    include_embeddings: bool = Field(False, description="what the first block is given, too")
    distance: Literal["squares", "cosine"] = Field(
        "squares", description="what states miss, squared and relative, or the angle between them"
    )

    def compared(self, student: Sight, teacher: Sight, mask: Tensor) -> Compared:
        """A projection to the teacher's width for each block, where widths differ."""
        own, theirs = student.made.states, teacher.made.states
        pairs = [(i + 1, j + 1) for i, j in followed(self.layers, student, teacher, mask)]
        if self.include_embeddings:
            pairs.insert(0, (0, 0))
        maps = [projection(own[i][mask].double(), theirs[j][mask].double()) for i, j in pairs]
        return _Hidden(pairs, maps, missed if self.distance == "squares" else turned)


class _Hidden(Compared):
    def __init__(
        self, pairs: list[tuple[int, int]], maps: list[nn.Module], distance: Distance
    ) -> None:
        super().__init__()
        self.pairs, self.maps, self.distance = pairs, nn.ModuleList(maps), distance

    def forward(self, own: Watched, theirs: Watched, mask: Tensor) -> Tensor:
        losses = [
            self.distance(turn(own.states[i]), theirs.states[j], mask)
            for turn, (i, j) in zip(self.maps, self.pairs, strict=True)
        ]
        return torch.stack(losses).mean()


def followed(layers: Layers, student: Sight, teacher: Sight, mask: Tensor) -> list[tuple[int, int]]:
    """Each block of the student, and the teacher's block that it follows.

    Raises UserError where the student has more blocks than each could follow one of its own.
    """
    own, theirs = student.made.states[1:], teacher.made.states[1:]
    few, many = len(own), len(theirs)
    if few > many and layers != "uniform":
        raise UserError(
            f"the student has {few} blocks and the teacher {many}, so `layers: {layers}` leaves "
            "some without one to follow. Take `layers: uniform`"
        )
    places = [max(0, round((index + 1) * many / few) - 1) for index in range(few)]
    if layers == "last":
        places = list(range(many - few, many))
    if layers == "searched":
        scores = [[alignment(one[mask], other[mask]) for other in theirs] for one in own]
        places = in_order(torch.tensor(scores))
    return list(enumerate(places))


def projection(own: Tensor, theirs: Tensor) -> nn.Module:
    """The linear of least squares from one to the other; nothing where widths are the same."""
    width, wanted = own.shape[1], theirs.shape[1]
    if width == wanted:
        return nn.Identity()
    gram = damped(own.t() @ own, _RIDGE)
    linear = nn.Linear(width, wanted, bias=False)
    linear.weight = nn.Parameter(torch.linalg.solve(gram, own.t() @ theirs).t().float())
    return linear
