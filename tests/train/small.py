"""Small trainings: tiny models on texts of a pattern that they can learn."""

from __future__ import annotations

from pathlib import Path

import torch

import tiny_models
from attar.core.context import Context
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


def weights(model: Model, under: str = "") -> Weights:
    """A copy of every weight, or of those whose names begin so."""
    whole = model.module.state_dict()
    return {name: tensor.clone() for name, tensor in whole.items() if name.startswith(under)}


def equal(one: Weights, other: Weights) -> bool:
    """Whether all weights are the same, to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def losses_of(ctx: Context) -> list[float]:
    """What each step cost, from the running mean, of which nine tenths stay in a step."""
    sums = [mean * (1 - 0.9**step) for step, (_, mean) in enumerate(ctx.curves["loss/train"], 1)]
    return [(after - 0.9 * before) / 0.1 for before, after in zip([0.0, *sums], sums, strict=False)]


def parts_of(ctx: Context) -> list[dict[str, float]]:
    """What the loss of each step was made of, by name."""
    curves = {name.removeprefix("loss/"): curve for name, curve in ctx.curves.items()}
    return [
        {name: curve[step][1] for name, curve in curves.items() if step < len(curve)}
        for step in range(len(curves["train"]))
    ]


def weighed(part: dict[str, float], weight: float, **signals: float) -> float:
    """What a step cost by its parts: divergence and task by a weight, each signal by its own."""
    answers = weight * part["divergence"] + (1 - weight) * part["task"]
    return answers + sum(own * part[name] for name, own in signals.items())


def folders(scratch: Path) -> list[str]:
    """What lies in the folder of a training's checkpoints."""
    return sorted(path.name for path in (scratch / "train").glob("*"))
