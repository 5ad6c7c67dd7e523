"""Several teachers at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny_models
from attar.core.context import Context
from attar.core.registry import find
from attar.core.step import Task
from attar.data.batches import Batch
from attar.errors import UserError
from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.train.ensemble import Combined, Ensemble
from attar.train.losses import Objective
from techniques.losing import DIVERGENCES, MOVING, costs, mixed, same
from train.small import dataset, equal, weights

PLACES: list[tuple[str, Task]] = [
    ("llama", "causal-lm"),
    ("bert", "masked-lm"),
    ("bert", "classification"),
]
SHORT: dict[str, Any] = {"batch": 4, "length": 16, "steps": 20, "learning_rate": 3e-3}


def context(teachers: dict[str, Model], **more: Any) -> Context:
    data = {"train": dataset(), "dev": dataset("dev", 12)}
    task = next(iter(teachers.values())).task
    return Context(task, data.__getitem__, teachers.__getitem__, **more)


def teachers(family: str, task: Task) -> dict[str, Model]:
    return {name: tiny_models.tiny(family, task, seed=seed) for seed, name in enumerate("abc", 1)}


def learn(student: Model, ctx: Context, **settings: Any) -> Model:
    step = find("distill/multi-teacher").model_validate(
        {**SHORT, "teachers": ["a", "b", "c"], **settings}
    )
    return step.apply(student, ctx)


@pytest.mark.parametrize(("family", "task"), PLACES)
@pytest.mark.parametrize("combined", ["mean", "confidence", "best"])
def test_comes_nearer_to_what_they_say_together(family: str, task: Task, combined: str) -> None:
    student, ctx = tiny_models.tiny(family, task), context(teachers(family, task))
    before = {name: weights(one) for name, one in teachers(family, task).items()}
    learn(student, ctx, combined=combined, weight=1.0)
    losses = [value for _, value in ctx.curves["loss/divergence"]]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert all(equal(weights(ctx.model(name)), kept) for name, kept in before.items())


def answers(one: Model, batch: Batch) -> torch.Tensor:
    """Logits at what is judged: [positions, classes]."""
    found = one.logits(batch)
    return found[:, :-1].flatten(0, 1) if one.task == "causal-lm" else found


def by_hand(
    student: Model, others: list[Model], batch: Batch, combined: Combined, temperature: float
) -> tuple[float, torch.Tensor]:
    """T^2 KL(mixture || student), a mean over what is judged, in float64; its slope in logits."""
    labels = batch.labels if student.task == "classification" else batch.labels[:, 1:].flatten()
    said = [answers(one, batch).detach().double() for one in others]
    tempered = [torch.softmax(one / temperature, -1) for one in said]
    own = torch.softmax(answers(student, batch).detach().double() / temperature, -1)
    total, slopes = 0.0, torch.zeros_like(own)
    for place, label in enumerate(labels.tolist()):
        rows = [one[place] for one in tempered]
        if combined == "mean":
            shares = [1.0] * len(rows)
        elif combined == "confidence":
            shares = [float(torch.exp((p * p.log()).sum())) for p in rows]
        else:
            chances = [float(one.softmax(-1)[place, label]) for one in said]
            shares = [float(chance == max(chances)) for chance in chances]
        p = torch.stack([share * row for share, row in zip(shares, rows, strict=True)]).sum(0)
        p = p / sum(shares)
        total += temperature**2 * float((p * (p / own[place]).log()).sum())
        slopes[place] = temperature * (own[place] - p)
    return total / len(labels), slopes / len(labels)


@pytest.mark.parametrize("combined", ["mean", "confidence", "best"])
@pytest.mark.parametrize(
    ("family", "task", "temperature"),
    [("llama", "causal-lm", 1.0), ("llama", "causal-lm", 1.7), ("bert", "classification", 2.0)],
)
def test_the_loss_and_its_gradient_are_the_formula(
    family: str, task: Task, temperature: float, combined: Combined
) -> None:
    student, others = tiny_models.tiny(family, task), list(teachers(family, task).values())
    batch = tiny_models.batch(student)
    mix = Mix("forward", temperature, 1.0, 0.0)
    ensemble = Ensemble(student, others, combined, temperature)
    loss = Objective(student, ensemble, lambda _: mix)(batch, 0.0)
    wanted, slopes = by_hand(student, others, batch, combined, temperature)
    assert float(loss.value.detach()) == pytest.approx(wanted, rel=1e-4)
    parameters = [p for p in student.module.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss.value, parameters)
    pulled = torch.autograd.grad(answers(student, batch), parameters, slopes.float())
    for one, other in zip(found, pulled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_teachers_of_different_widths_teach_together() -> None:
    others = teachers("llama", "causal-lm")
    others["b"] = tiny_models.tiny("llama", hidden_size=16, seed=4)
    others["c"] = tiny_models.tiny("gpt2", seed=5)
    learn(tiny_models.tiny("llama"), context(others), steps=2)


def test_bf16_makes_little_difference() -> None:
    ends: list[float] = []
    for precision in ("float32", "bf16"):
        ctx = context(teachers("llama", "causal-lm"), precision=precision)
        learn(tiny_models.tiny("llama"), ctx, steps=6)
        ends.append(ctx.curves["loss/dev"][-1][1])
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


def test_a_teacher_that_does_not_fit_is_refused_by_name() -> None:
    others = teachers("llama", "causal-lm")
    others["b"] = tiny_models.tiny("llama", vocab_size=110)
    with pytest.raises(UserError, match=r"teacher 'b': .*different vocabularies"):
        learn(tiny_models.tiny("llama"), context(others))
    classes = teachers("bert", "classification")
    classes["c"].labels = ("good", "bad", "mixed")
    with pytest.raises(UserError, match=r"teacher 'c': .*same order"):
        learn(tiny_models.tiny("bert", "classification"), context(classes))


def test_one_teacher_is_not_several() -> None:
    with pytest.raises(ValueError, match="teachers"):
        find("distill/multi-teacher").model_validate({"teachers": ["a"]})


def test_the_key_holds_every_teacher() -> None:
    step = find("distill/multi-teacher").model_validate({"teachers": ["a", "b"]})
    keys = {"a": "1", "b": "2"}
    assert step.keyed_references("model", keys.__getitem__) == {"teachers": ["1", "2"]}
    assert step.keyed_references("data", lambda name: name) == {"data": "train", "held_out": "dev"}


def judged_by_itself(student: Model, batch: Batch) -> float:
    """The task's own loss, in float64."""
    logits = student.logits(batch).detach().double()
    if student.task == "classification":
        return float(torch.nn.functional.cross_entropy(logits, batch.labels))
    labels = batch.labels[:, 1:].flatten()
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels))


@pytest.mark.parametrize("combined", ["mean", "confidence", "best"])
@pytest.mark.parametrize(
    ("family", "task", "temperature"),
    [("llama", "causal-lm", 1.0), ("bert", "classification", 2.0)],
)
def test_the_weight_moves_evenly(
    family: str,
    task: Task,
    temperature: float,
    combined: Combined,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student, others = tiny_models.tiny(family, task), teachers(family, task)
    settings = {**SHORT, **MOVING, "teachers": ["a", "b", "c"], "combined": combined}
    batch = tiny_models.batch(student)
    kind, ctx = "distill/multi-teacher", context(others)
    found = costs(kind, settings, student, ctx, monkeypatch, batch=batch)
    divergence, _ = by_hand(student, list(others.values()), batch, combined, temperature)
    assert found.totals == mixed(divergence, judged_by_itself(student, batch))
    half_way = {**settings, "weight": 0.5, "weight_end": None}
    assert found.score == costs(kind, half_way, student, ctx, monkeypatch).score


@pytest.mark.parametrize("combined", ["mean", "confidence", "best"])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_two_equal_teachers_are_as_one(
    family: str,
    task: Task,
    divergence: dict[str, Any],
    combined: Combined,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student, ctx = tiny_models.tiny(family, task), context(teachers(family, task))
    settings = {**SHORT, **MOVING, **divergence}
    several = {**settings, "teachers": ["a", "a"], "combined": combined}
    found = costs("distill/multi-teacher", several, student, ctx, monkeypatch)
    one = costs("distill/logits", {**settings, "teacher": "a"}, student, ctx, monkeypatch)
    same(found, one)
    assert found.score == pytest.approx(one.score, rel=1e-5)


def test_a_divergence_that_several_teachers_cannot_have_is_refused() -> None:
    kind = find("distill/multi-teacher")
    with pytest.raises(ValueError, match="compares logits, and several teachers are made one by"):
        kind.model_validate({"teachers": ["a", "b"], "divergence": "logits"})
    with pytest.raises(ValueError, match="`share` says nothing of forward"):
        kind.model_validate({"teachers": ["a", "b"], "share": 0.5})
    with pytest.raises(ValueError, match="weight_end"):
        kind.model_validate({"teachers": ["a", "b"], "weight_end": 1.5})
