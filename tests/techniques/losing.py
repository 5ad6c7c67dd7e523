"""What a training's loss and score are before its first step, at times of one's choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from attar.core.context import Context
from attar.core.registry import find
from attar.data.batches import Batch
from attar.models.model import Model
from attar.train.losses import Loss

TIMES = (0.0, 0.5, 1.0)
WEIGHTS = (0.8, 0.5, 0.2)  # at these times, of `MOVING`
MOVING: dict[str, Any] = {"weight": 0.8, "weight_end": 0.2}
DIVERGENCES: list[dict[str, Any]] = [
    {"divergence": "forward", "temperature": 1.5},
    {"divergence": "reverse"},
    {"divergence": "jensen-shannon", "share": 0.3},
    {"divergence": "skewed", "temperature": 2.0},
    {"divergence": "skewed-reverse", "share": 0.2},
    {"divergence": "total-variation"},
]
LOGITS: dict[str, Any] = {"divergence": "logits"}


@dataclass(frozen=True)
class Costs:
    """A batch, its loss at `TIMES` with the gradients, and the score of held-out data."""

    batch: Batch
    losses: list[Loss]
    slopes: list[list[torch.Tensor]]
    score: float | None

    @property
    def totals(self) -> list[float]:
        """The loss at each time."""
        return [float(loss.value.detach()) for loss in self.losses]


def costs(
    kind: str,
    settings: dict[str, Any],
    student: Model,
    ctx: Context,
    monkeypatch: pytest.MonkeyPatch,
    number: int = 0,
    batch: Batch | None = None,
    become: Model | None = None,
) -> Costs:
    """What a step's training begins with, on one of its batches or on another.

    become: whose weights the student has then, where those differ from what the step began with.
    """
    step, found = find(kind).model_validate(settings), []

    def fit(
        model: Model,
        loss: Callable[[Batch, float], Loss],
        stream: Any,
        schedule: Any,
        ctx: Context,
        evaluate: Callable[[], float] | None = None,
    ) -> None:
        if become is not None:
            model.module.load_state_dict(become.module.state_dict(), strict=False)
        given = stream.batch(number) if batch is None else batch
        losses = [loss(given, progress) for progress in TIMES]
        slopes = [_slopes(model, one.value) for one in losses]
        with torch.no_grad():
            found.append(Costs(given, losses, slopes, evaluate() if evaluate else None))

    with monkeypatch.context() as patched:
        for module in (type(step).__module__, "attar.techniques.distill._guided"):
            patched.setattr(f"{module}.fit", fit, raising=False)
        step.apply(student, ctx)
    (only,) = found
    return only


def same(one: Costs, other: Costs) -> None:
    """Assert that losses and gradients are equal at all times, but for rounding."""
    assert one.totals == pytest.approx(other.totals, rel=1e-5)
    assert all(any(bool(slope.any()) for slope in slopes) for slopes in one.slopes)
    for mine, theirs in zip(one.slopes, other.slopes, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def mixed(divergence: float, task: float) -> Any:
    """The totals of `MOVING` at all times."""
    return pytest.approx([w * divergence + (1 - w) * task for w in WEIGHTS], rel=1e-4)


def _slopes(model: Model, value: torch.Tensor) -> list[torch.Tensor]:
    parameters = [p for _, p in model.module.named_parameters()]
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
