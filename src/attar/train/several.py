"""Several tasks on one trunk: whose batch comes next, what it costs, and how each is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import nn

from attar.core.keys import seed_of
from attar.data.batches import Batch, Stream
from attar.layers.heads import answering
from attar.models.model import Model
from attar.train.losses import Loss, Objective


@dataclass
class TaskBatch(Batch):
    """A batch of one task, by its number."""

    task: int = 0


class Mixed:
    """The batches of several streams, each drawn with p proportional to rows^(1 / temperature).

    At 1 a task comes as often as it has rows; the higher, the more evenly (Arivazhagan et al.
    2019, arXiv 1907.05019). Which task a batch is of follows from the seed and its number.
    """

    def __init__(self, streams: Sequence[Stream], temperature: float, seed: int) -> None:
        self.streams, self.seed = streams, seed
        self.weights = [stream.rows ** (1 / temperature) for stream in streams]
        self.per_epoch = sum(stream.per_epoch for stream in streams)
        self._drawn: list[tuple[int, int]] = []  # task, and how many of it came before
        self._counts = [0] * len(streams)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TaskBatch:
        """The batch that a rank works on; all ranks work on one task."""
        task, number = self.drawn(step)
        found = self.streams[task].batch(number, rank, world)
        return TaskBatch(found.input_ids, found.attention_mask, found.labels, task=task)

    def drawn(self, step: int) -> tuple[int, int]:
        """The task of a step, and how many batches of it came before."""
        while len(self._drawn) <= step:
            draw = Random(seed_of(self.seed, "task", len(self._drawn)))
            (task,) = draw.choices(range(len(self.streams)), self.weights)
            self._drawn.append((task, self._counts[task]))
            self._counts[task] += 1
        return self._drawn[step]


@dataclass(frozen=True)
class Part:
    """One of the tasks: its head, what its answers cost, and held-out batches."""

    name: str
    model: Model
    head: nn.Module
    objective: Objective
    held: Sequence[Batch]


class Several:
    """The loss of whichever task a batch is of, with that task's head in place."""

    def __init__(self, parts: Sequence[Part], place: str) -> None:
        self.parts, self.place = parts, place

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch."""
        part = self.parts[batch.task if isinstance(batch, TaskBatch) else 0]
        with answering(part.model.module, self.place, part.head):
            loss = part.objective(batch, progress)
        found = {f"{name}/{part.name}": value for name, value in loss.parts.items()}
        return Loss(loss.value, loss.count, found)

    def score(self) -> Callable[[], float] | None:
        """A function that tells the mean over tasks of the loss on held-out batches."""
        judged = [(part, part.objective.score(part.held)) for part in self.parts if part.held]
        if not judged:
            return None

        def mean() -> float:
            total = 0.0
            for part, own in judged:
                with answering(part.model.module, self.place, part.head):
                    total += own()
            return total / len(judged)

        return mean

    def accuracies(self) -> dict[str, float]:
        """The share of held-out rows that each task's head is right about."""
        return {part.name: self._accuracy(part) for part in self.parts if part.held}

    def _accuracy(self, part: Part) -> float:
        right = count = 0
        with torch.no_grad(), answering(part.model.module, self.place, part.head):
            for held in part.held:
                batch = held.to(part.model.device)
                known = batch.labels >= 0
                found = part.model.logits(batch).argmax(-1)
                right += int((found == batch.labels)[known].sum())
                count += int(known.sum())
        return right / max(count, 1)
