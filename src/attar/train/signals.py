"""Losses on what a model makes on its way, beside those on its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from attar.data.batches import Batch
from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.train.losses import Loss, Objective, Teacher, averaged, teaching
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

    @property
    def within_batch(self) -> bool:
        """Whether there must be other texts in a batch for something to be compared."""
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


class Guide:
    """A teacher that the student follows on its way, not in its answers alone.

    own, theirs: what the last forward passes of student and teacher made.
    """

    def __init__(self, teacher: Model, own: Watched, theirs: Watched, signals: Signals) -> None:
        self.teacher, self.own, self.theirs, self.signals = teacher, own, theirs, signals

    def look(self, batch: Batch) -> None:
        """Go over a batch, where the teacher's answers are not asked for."""
        with torch.no_grad():  # not inference mode: its tensors are in the student's graph
            self.teacher.hidden(batch)

    def added(self, loss: Loss, batch: Batch, progress: float, share: float = 1.0) -> Loss:
        """A loss, and a share of the signals on a batch that student and teacher went over."""
        mask, theirs = batch.attention_mask.bool(), self.theirs.given()
        total, parts = loss.value, dict(loss.parts)
        for name, (signal, compared) in self.signals.items():
            value = compared(self.own, theirs, mask)
            total = total + share * signal.weight_at(progress) * value
            parts[name] = (float(value.detach()), loss.count)
        return Loss(total, loss.count, parts)


class Guided(Objective):
    """The loss on answers, where it has weight, and on what leads to them.

    Of several guides a signal is the mean. Without a `teacher` answers are held against labels
    alone.
    """

    def __init__(
        self,
        student: Model,
        teacher: Model | Teacher | None,
        mix: Callable[[float], Mix],
        guides: Sequence[Guide],
    ) -> None:
        if isinstance(teacher, Model):
            teacher = partial(teaching, teacher, seen=True)
        super().__init__(student, teacher, mix)
        self.guides = guides

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch."""
        mix = self.mix(progress)
        answers = bool(mix.weight or mix.task_weight)
        if not answers or self.teacher is None:
            for guide in self.guides:
                guide.look(batch)
        if answers:
            loss = self.against(self.told(batch), batch, mix)
        else:  # a model without a head has no answers either
            self.model.hidden(batch)
            mask = batch.attention_mask
            loss = Loss(torch.zeros((), device=mask.device), int(mask.sum()), {})
        for guide in self.guides:
            loss = guide.added(loss, batch, progress, 1 / len(self.guides))
        return loss

    def score(self, batches: Sequence[Batch]) -> Callable[[], float]:
        """The same with signals: what a teacher makes on its way is too much to keep, it runs."""
        return averaged(self, batches, self.model.device)


def toward(
    student: Model,
    teacher: Model | Teacher | None,
    mix: Callable[[float], Mix],
    guides: Sequence[Guide],
) -> Objective:
    """The loss toward a teacher's answers, and by the signals of guides, where there are any."""
    if not guides:
        return Objective(student, teacher, mix)
    return Guided(student, teacher, mix, guides)


@contextmanager
def guiding(
    student: Model, teachers: Sequence[tuple[str, Model, Batch]], signals: Mapping[str, Signal]
) -> Iterator[list[Guide]]:
    """A guide for each teacher, whose parameters are the student's as long as this lasts.

    teachers: what each is called behind the names of its signals, if anything, the teacher, and a
    batch to begin with. Without signals there are no guides.
    """
    if not signals:
        yield []
        return
    maps = any(signal.maps for signal in signals.values())
    holder = nn.ModuleList()
    with ExitStack() as stack:
        own = stack.enter_context(watched(student, maps))
        found: list[Guide] = []
        for label, teacher, batch in teachers:
            theirs = stack.enter_context(watched(teacher, maps))
            ready = _ready((Sight(student, own), Sight(teacher, theirs)), signals, batch)
            holder.append(nn.ModuleDict(ready))
            named = {
                f"{name}/{label}" if label else name: (signals[name], compared)
                for name, compared in ready.items()
            }
            found.append(Guide(teacher, own, theirs, named))
        student.module.add_module(NAME, holder.to(student.device).requires_grad_(True))
        try:
            yield found
        finally:
            del student.module._modules[NAME]


@contextmanager
def guided(
    student: Model,
    teacher: Model,
    signals: Mapping[str, Signal],
    mix: Callable[[float], Mix],
    batch: Batch,
) -> Iterator[Objective]:
    """The loss toward one teacher, in its answers and by signals, as long as this lasts."""
    with guiding(student, [("", teacher, batch)], signals) as guides:
        yield toward(student, teacher, mix, guides)


@torch.no_grad()
def _ready(
    sights: tuple[Sight, Sight], signals: Mapping[str, Signal], batch: Batch
) -> dict[str, Compared]:
    """What compares the two for each signal, made ready on a batch."""
    batch = batch.to(sights[0].model.device)
    for sight in sights:
        sight.model.hidden(batch)
    mask = batch.attention_mask.bool()
    return {name: signal.compared(*sights, mask) for name, signal in signals.items()}
