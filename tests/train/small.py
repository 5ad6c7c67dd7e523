"""Small trainings: tiny models on texts of a pattern that they can learn."""

from __future__ import annotations

from pathlib import Path

import torch

import tiny_models
from attar.data.example import Dataset, Example
from attar.models.model import Model

Weights = dict[str, torch.Tensor]


def dataset(name: str = "train", count: int = 48, labeled: int | None = None) -> Dataset:
    """Texts that count up by one from some word; the label says how long the count is."""
    examples: list[Example] = []
    for number in range(count):
        kind = number % len(tiny_models.LABELS)
        words = " ".join(f"w{(7 * number + k) % 90}" for k in range(6 + 6 * kind))
        known = labeled is None or number < labeled
        examples.append(Example(words, tiny_models.LABELS[kind] if known else None))
    return Dataset(name, examples, "fingerprint", tiny_models.LABELS)


def weights(model: Model) -> Weights:
    """A copy of every weight."""
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


def equal(one: Weights, other: Weights) -> bool:
    """Whether all weights are the same, to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def folders(scratch: Path) -> list[str]:
    """What lies in the folder of a training's checkpoints."""
    return sorted(path.name for path in (scratch / "train").glob("*"))
