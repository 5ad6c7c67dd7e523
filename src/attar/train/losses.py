"""What a batch costs: the task's own loss, the distance from a teacher, or a mix of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attar.data.batches import Batch
from attar.errors import DataError, Problem
from attar.layers import all_blocks
from attar.models.model import Model
from attar.ops.chunked import Mix, Side, Told, chunked
from attar.ops.divergence import IGNORED
from attar.train.written import OwnWords


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, in nats.

    value: mean over `count` positions or rows, with a gradient; parts: means to report, with
    the number of positions or rows that each is over.
    """

    value: Tensor
    count: int
    parts: dict[str, tuple[float, int]]


Teacher = Callable[[Batch], Told]  # what is said of the judged positions of a batch


_GIVEN = Mix("forward", weight=1.0, task_weight=0.0)  # of probabilities that rows came with


def plain(progress: float) -> Mix:
    """The task's own loss alone, at any time."""
    return Mix()


def usual_temperature(model: Model) -> float:
    """What logits are divided by in a divergence, unless a recipe says otherwise."""
    return 2.0 if model.task == "classification" else 1.0


def forward(model: Model, weight: float, temperature: float | None) -> Mix:
    """Weight x KL(teacher || model) + (1 - weight) x the task's own loss."""
    return Mix("forward", temperature or usual_temperature(model), weight, 1 - weight)


class Objective:
    """The loss of a model on a batch at a share of the training done, from 0 to 1.

    With a teacher, the mix of its divergence and the task's own loss; a row without a label
    adds the divergence alone. Without one, what a batch's rows came with: probabilities of the
    classes, which are a teacher's (`data/label`), or labels. The logits of a language model never
    exist all at once.
    """

    def __init__(
        self,
        model: Model,
        teacher: Model | Teacher | None = None,
        mix: Callable[[float], Mix] = plain,
    ) -> None:
        self.model, self.mix = model, mix
        self.teacher = partial(teaching, teacher) if isinstance(teacher, Model) else teacher

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch."""
        if self.teacher is None and batch.shares is not None:
            return self._against_shares(batch, batch.shares)
        return self.against(self.told(batch), batch, self.mix(progress))

    def _against_shares(self, batch: Batch, shares: Tensor) -> Loss:
        """KL(given || model) over the rows that came with probabilities, or with a label."""
        known = shares.sum(1) > 0
        labels, own = batch.labels[known], states(self.model, batch)[known]
        given = Side(_same, shares[known].log())
        losses = chunked(side(self.model, own), given, labels, _GIVEN)
        parts = {"divergence": (float(losses.divergence), len(labels))}
        return Loss(losses.total, len(labels), parts)

    def told(self, batch: Batch) -> Told | None:
        """What the teacher says of a batch, where there is one."""
        return None if self.teacher is None else self.teacher(batch)

    def score(self, batches: Sequence[Batch]) -> Callable[[], float]:
        """A function that tells the loss on held-out batches, weights as they are half way."""
        return judge(self, batches, self.mix(0.5))

    def against(self, teacher: Told | None, batch: Batch, mix: Mix) -> Loss:
        """The loss of a batch where what the teacher says of it is at hand."""
        labels, own = judged_labels(self.model, batch), states(self.model, batch)
        known = labels != IGNORED
        labeled = int(known.sum())
        if teacher is None and labeled < len(labels):  # such a row without a teacher says nothing
            labels, own = labels[known], own[known]
        losses = chunked(side(self.model, own), teacher, labels, mix)
        parts = {"task": (float(losses.task), labeled)} if labeled else {}
        if teacher is not None:
            parts["divergence"] = (float(losses.divergence), len(labels))
        return Loss(losses.total, len(labels), parts)


def states(model: Model, batch: Batch) -> Tensor:
    """What the loss reads: [judged positions, hidden] of a language model, [rows, classes]."""
    if model.task == "classification":
        with all_blocks(model.module):
            return model.logits(batch)
    hidden = model.hidden(batch)
    labels = batch.labels
    if model.task == "causal-lm":
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    return hidden[labels != IGNORED]


def judged_labels(model: Model, batch: Batch) -> Tensor:
    """The labels that belong to `states`, shifted by one for causal language models.

    IGNORED where a position is judged by a teacher alone.
    """
    if model.task == "classification":
        return batch.labels
    labels = batch.labels[:, 1:] if model.task == "causal-lm" else batch.labels
    labels = labels[labels != IGNORED]
    return torch.full_like(labels, IGNORED) if isinstance(batch, OwnWords) else labels


def teaching(teacher: Model, batch: Batch, seen: bool = False) -> Side:
    """The teacher at its head, without a graph; what is `seen` of it may be in the student's."""
    with torch.no_grad() if seen else torch.inference_mode():
        return side(teacher, states(teacher, batch))


def side(model: Model, hidden: Tensor) -> Side:
    """The model's head over hidden states; a classifier's states are its logits already."""
    if model.task == "classification":
        return Side(_same, hidden)
    parts = [model.module.get_submodule(path) for path in model.family.head]
    weights = {id(weight): weight for part in parts for weight in part.parameters()}
    return Side(model.linear_head or model.head, hidden, list(weights.values()))


_UNJUDGED = (
    "nothing in the held-out data is judged: its rows have no labels, so there is no loss of the "
    "task's own on them. Give it labels, or train without it (held_out: null)"
)


def judge(objective: Objective, batches: Sequence[Batch], mix: Mix) -> Callable[[], float]:
    """A function that tells the loss on held-out batches, always with the same mix.

    What the teacher says of them is worked out once and kept: its states are small.
    """
    kept: list[Told | None] = []

    def score() -> float:
        total = count = 0.0
        for index, held in enumerate(batches):
            batch = held.to(objective.model.device)
            if len(kept) == index:
                kept.append(objective.told(batch))
            loss = objective.against(kept[index], batch, mix)
            total += float(loss.value.detach()) * loss.count
            count += loss.count
        if not count:
            raise DataError([Problem(_UNJUDGED)])
        return total / count

    return score


def averaged(
    loss: Callable[[Batch, float], Loss], batches: Sequence[Batch], device: torch.device | str
) -> Callable[[], float]:
    """A function that tells a loss on held-out batches, with the weights that it has half way."""

    def score() -> float:
        losses = [loss(batch.to(device), 0.5) for batch in batches]
        count = sum(each.count for each in losses)
        return sum(float(each.value) * each.count for each in losses) / max(count, 1)

    return score


def _same(states: Tensor) -> Tensor:
    return states
