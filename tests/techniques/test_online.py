"""Two models that learn together: what each of them is pulled by."""

from __future__ import annotations

from functools import partial
from statistics import fmean
from typing import Any

import pytest
import torch

import tiny_models
from attar.core.context import Context
from attar.core.step import Task
from attar.data.batches import Batch
from attar.errors import DataError
from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.techniques.distill.logits import Logits
from attar.techniques.distill.online import Online, _Pair
from attar.train.losses import Objective
from techniques.losing import DIVERGENCES, LOGITS, TIMES
from train.small import dataset, equal, weights

SHORT: dict[str, Any] = {"batch": 4, "length": 16, "steps": 20, "learning_rate": 3e-3}


def pair(family: str, task: Task) -> tuple[Model, Model]:
    student, teacher = (tiny_models.tiny(family, task, seed=seed) for seed in (0, 1))
    return student, teacher


def judged(model: Model, batch: Batch) -> torch.Tensor:
    """Logits at the judged positions, in float64."""
    logits = model.logits(batch).double()
    return logits if model.task == "classification" else logits[:, :-1].flatten(0, 1)


@pytest.mark.parametrize("back", [0.0, 0.3])
@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_value_and_gradients_are_the_formula(family: str, task: Task, back: float) -> None:
    student, teacher = pair(family, task)
    ids = torch.randint(6, 90, (4, 10), generator=torch.Generator().manual_seed(0))
    labels = ids if task == "causal-lm" else torch.tensor([1, -100, 2, 0])
    batch = Batch(ids, torch.ones_like(ids), labels)
    heat = 2.0
    mixes = Mix("forward", heat, 0.6, 0.4), Mix("forward", heat, back, 1 - back)
    objective = _Pair(student, teacher, lambda _: mixes[0], lambda _: mixes[1])
    loss = objective(batch, 0.0)
    found = gradients(loss.value, student, teacher)

    own, theirs = judged(student, batch), judged(teacher, batch)
    wanted = labels[:, 1:].flatten() if task == "causal-lm" else labels
    known = wanted >= 0

    def kl(fixed: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
        p = (fixed.detach() / heat).softmax(-1)
        return heat**2 * (p * (p.log() - (free / heat).log_softmax(-1))).sum(-1)

    def cross(logits: torch.Tensor) -> torch.Tensor:
        rows = logits.log_softmax(-1)[known]
        return -rows.gather(-1, wanted[known].unsqueeze(-1)).squeeze(-1)

    first = 0.6 * kl(theirs, own).sum() + 0.4 * cross(own).sum()
    second = back * kl(own, theirs)[known].sum() + (1 - back) * cross(theirs).sum()
    expected = (first + second) / len(wanted)
    assert loss.count == len(wanted)
    assert float(loss.value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for one, other in zip(found, gradients(expected, student, teacher), strict=True):
        torch.testing.assert_close(one, other.float(), atol=1e-5, rtol=1e-3)


def gradients(value: torch.Tensor, *models: Model) -> list[torch.Tensor]:
    parameters = [p for model in models for p in model.module.parameters()]
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize(
    ("family", "task"), [("llama", "causal-lm"), ("bert", "masked-lm"), ("bert", "classification")]
)
def test_both_learn_and_the_teacher_stays_as_it_was(family: str, task: Task) -> None:
    student, teacher = pair(family, task)
    before, names = weights(teacher), student.module.state_dict().keys()
    data = {"train": dataset(), "dev": dataset("dev", 12)}
    ctx = Context(task, data.__getitem__, lambda _: teacher)
    Online(**SHORT, evaluate_every=1).apply(student, ctx)
    assert equal(weights(teacher), before)
    assert student.module.state_dict().keys() == names
    for curve in ("loss/dev", "loss/teacher", "loss/divergence"):
        values = [value for _, value in ctx.curves[curve]]
        middle = len(values) // 2
        assert fmean(values[middle:]) < fmean(values[:middle])


def test_a_model_may_lead_itself() -> None:
    student = tiny_models.tiny("bert", "classification")
    data = {"train": dataset(), "dev": dataset("dev", 12)}
    ctx = Context("classification", data.__getitem__, lambda _: student)
    Online(**{**SHORT, "steps": 2}, back=0.5).apply(student, ctx)


def test_the_teacher_needs_labels() -> None:
    student, teacher = pair("bert", "classification")
    data = {"train": dataset(labeled=0)}
    ctx = Context("classification", data.__getitem__, lambda _: teacher)
    with pytest.raises(DataError, match="no labels"):
        Online(**SHORT).apply(student, ctx)


@pytest.mark.parametrize("divergence", [*DIVERGENCES, LOGITS], ids=str)
@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_each_learns_from_the_other_as_from_any_teacher(
    family: str, task: Task, divergence: dict[str, Any]
) -> None:
    """By any divergence, and both weights move."""
    student, teacher = pair(family, task)
    batch = tiny_models.batch(student)
    step = Online(weight=0.8, weight_end=0.2, back=0.0, back_end=0.6, **divergence)
    both = _Pair(student, teacher, partial(step.mix, student), partial(step.mix_back, student))
    for progress, weight, back in zip(TIMES, (0.8, 0.5, 0.2), (0.0, 0.3, 0.6), strict=True):
        found = both(batch, progress)
        own = Logits(weight=weight, **divergence)
        theirs = Logits(weight=back, **divergence)
        total = (
            Objective(student, teacher, partial(own.mix, student))(batch, 0.0).value
            + Objective(teacher, student, partial(theirs.mix, teacher))(batch, 0.0).value
        )
        assert float(found.value.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
        pairs = zip(
            gradients(found.value, student, teacher),
            gradients(total, student, teacher),
            strict=True,
        )
        for a, b in pairs:
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


def test_without_ends_the_weights_stay() -> None:
    student, teacher = pair("bert", "classification")
    step = Online(back=0.25)
    for progress in TIMES:
        assert step.mix(student, progress) == Mix("forward", 2.0, 0.5, 0.5)
        assert step.mix_back(teacher, progress) == Mix("forward", 2.0, 0.25, 0.75)
