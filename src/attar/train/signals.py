"""Losses on what a model makes on its way, beside those on its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from attar.data.batches import Batch
from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.train.losses import Loss, Objective, averaged, side, states
from attar.train.schedule import moved
from attar.train.watched import Watched, watched

Signals = dict[str, "tuple[Signal, Compared]"]
NAME = "signals"  # of the submodule that holds what is trained beside the model


class Signal(BaseModel):
    """How much a signal counts, mixed into its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(1.0, ge=0, description="what the signal is multiplied with in the loss")
    weight_end: float | None = Field(
        None, ge=0, description="what the weight moves to, evenly, as training goes on"
    )

    @property
    def maps(self) -> bool:
        """Whether it compares attention's own maps, which must then be computed."""
        return False

    def weight_at(self, progress: float) -> float:
        """The weight at a share of the training done, from 0 to 1."""
        return moved(self.weight, self.weight_end, progress)

    def compared(self, student: Sight, teacher: Sight, mask: Tensor) -> Compared:
        """What compares the two, made ready on a batch that both have seen.

        Its parameters are trained with the student. Raises UserError where they do not compare.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Sight:
    """A model, and what its last forward pass made."""

    model: Model
    made: Watched


class Compared(nn.Module):
    """Compares what student and teacher made of a batch: a mean."""

    def forward(self, own: Watched, theirs: Watched, mask: Tensor) -> Tensor:
        """The signal's loss; mask: [batch, length], True where a token is real."""
        raise NotImplementedError


class Guided(Objective):
    """The loss on answers, where it has weight, and on what leads to them."""

    def __init__(
        self, student: Sight, teacher: Sight, mix: Callable[[float], Mix], signals: Signals
    ) -> None:
        super().__init__(student.model, teacher.model, mix)
        self.own, self.theirs, self.signals = student.made, teacher.made, signals
        self.guide = teacher.model

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch."""
        mix, mask = self.mix(progress), batch.attention_mask.bool()
        if mix.weight or mix.task_weight:
            with torch.no_grad():  # not inference mode: its tensors are in the student's graph
                theirs = side(self.guide, states(self.guide, batch))
            loss = self.against(theirs, batch, mix)
        else:  # a model without a head has no answers either
            with torch.no_grad():
                self.guide.hidden(batch)
            self.model.hidden(batch)
            loss = Loss(torch.zeros((), device=mask.device), int(mask.sum()), {})
        total, parts = loss.value, dict(loss.parts)
        for name, (signal, compared) in self.signals.items():
            value = compared(self.own, self.theirs, mask)
            total = total + signal.weight_at(progress) * value
            parts[name] = (float(value.detach()), loss.count)
        return Loss(total, loss.count, parts)

    def score(self, batches: Sequence[Batch]) -> Callable[[], float]:
        """The same with signals: what a teacher makes on its way is too much to keep, it runs."""
        return averaged(self, batches, self.model.device)


@contextmanager
def guided(
    student: Model,
    teacher: Model,
    signals: Mapping[str, Signal],
    mix: Callable[[float], Mix],
    batch: Batch,
) -> Iterator[Guided]:
    """An objective with signals, whose own parameters are the student's as long as this lasts."""
    maps = any(signal.maps for signal in signals.values())
    with watched(student, maps) as own, watched(teacher, maps) as theirs:
        batch, sights = batch.to(student.device), (Sight(student, own), Sight(teacher, theirs))
        with torch.no_grad():
            student.hidden(batch)
            teacher.hidden(batch)
            mask = batch.attention_mask.bool()
            ready = {name: one.compared(*sights, mask) for name, one in signals.items()}
        holder = nn.ModuleDict(ready).to(student.device).requires_grad_(True)
        student.module.add_module(NAME, holder)
        try:
            yield Guided(*sights, mix, {name: (signals[name], ready[name]) for name in signals})
        finally:
            del student.module._modules[NAME]
