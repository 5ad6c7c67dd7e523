"""Several tasks on one trunk: whose turn it is, what each head learns, and how it is loaded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import attar
import tiny_models
from attar.core.context import Context
from attar.data.example import Dataset, Example
from attar.errors import UserError
from attar.models import save
from attar.models.model import Model
from attar.models.tasks import answers_of
from attar.techniques.adapt.tasks import Tasks
from attar.train.several import Mixed

SHORT: dict[str, Any] = {
    "batch": 8,
    "length": 16,
    "steps": 60,
    "learning_rate": 5e-3,
    "evaluate_every": 10,
}
MOODS = ("calm", "wild")


def words(name: str, labels: tuple[str, ...], count: int = 48) -> Dataset:
    """Texts of one word over and over, a word for each label; those of two tasks differ."""
    kinds = len(labels)
    rows = [
        Example(" ".join([f"w{40 * (kinds - 2) + 10 * (n % kinds)}"] * 8), labels[n % kinds])
        for n in range(count)
    ]
    return Dataset(name, rows, "fingerprint", labels)


def context(teachers: dict[str, Model] | None = None) -> Context:
    data = {
        "train": words("train", tiny_models.LABELS),
        "dev": words("dev", tiny_models.LABELS, 12),
        "mood": words("mood", MOODS),
        "mood-dev": words("mood-dev", MOODS, 12),
    }
    return Context("classification", data.__getitem__, (teachers or {}).__getitem__)


def trained(family: str = "bert", **more: Any) -> tuple[Model, Context]:
    model, ctx = tiny_models.tiny(family, "classification"), context(more.pop("models", None))
    settings = {**SHORT, "others": ["mood"], "others_held_out": ["mood-dev"], **more}
    Tasks.model_validate(settings).apply(model, ctx)
    return model, ctx


@pytest.mark.parametrize("family", tiny_models.ENCODERS)
def test_every_family_keeps_and_loads_its_heads(family: str, tmp_path: Path) -> None:
    model, _ = trained(family, steps=2)
    own = tiny_models.logits(model)
    save(model, tmp_path)
    assert torch.equal(tiny_models.logits(attar.load(tmp_path)), own)
    other = attar.load(tmp_path, head="mood")
    assert other.labels == MOODS
    states: list[torch.Tensor] = []
    place = model.module.get_submodule(answers_of(model))
    handle = place.register_forward_pre_hook(lambda _, given: states.append(given[0]))
    tiny_models.logits(model)
    handle.remove()
    head = model.module.heads[0]
    expected = states[0].double() @ head.weight.double().t() + head.bias.double()
    torch.testing.assert_close(
        tiny_models.logits(other).double(), expected.detach(), atol=1e-5, rtol=1e-5
    )
    tiny_models.assert_ordinary(other, tmp_path / "one")


def test_both_tasks_are_learned() -> None:
    _, ctx = trained()
    assert ctx.notes["accuracy of train"] > 0.9
    assert ctx.notes["accuracy of mood"] > 0.9
    assert {"loss/task/train", "loss/task/mood"} <= ctx.curves.keys()


def test_each_task_has_a_teacher_of_its_own() -> None:
    teacher = tiny_models.tiny("bert", "classification", seed=1)
    other = tiny_models.tiny("bert", "classification", seed=2, num_labels=2)
    other.labels = MOODS
    _, ctx = trained(models={"a": teacher, "b": other}, teachers=["a", "b"])
    losses = [value for _, value in ctx.curves["loss/dev"]]
    assert min(losses) < losses[0]
    with pytest.raises(UserError, match="classes are"):
        trained(models={"a": teacher, "b": teacher}, teachers=["a", "b"])


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.9), (2.0, 0.75), (1e9, 0.5)])
def test_tasks_come_by_their_rows_to_a_power(temperature: float, share: float) -> None:
    class Rows:
        def __init__(self, rows: int) -> None:
            self.rows, self.per_epoch = rows, rows

    mixed = Mixed([Rows(900), Rows(100)], temperature, seed=0)  # type: ignore[list-item]
    drawn = [mixed.drawn(step) for step in range(4000)]
    assert Counter(task for task, _ in drawn)[0] / 4000 == pytest.approx(share, abs=0.03)
    second = [number for task, number in drawn if task == 1]
    assert second == list(range(len(second)))
    late = Mixed([Rows(900), Rows(100)], temperature, seed=0)  # type: ignore[list-item]
    assert late.drawn(3999) == drawn[3999]


def test_names_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="named twice"):
        Tasks(others=("train",))
    with pytest.raises(ValueError, match="for each of 2 tasks"):
        Tasks(others=("mood",), teachers=("original",))


def test_heads_are_never_lost_to_others() -> None:
    model, ctx = trained(steps=1)
    with pytest.raises(UserError, match="heads for mood already"):
        Tasks.model_validate({**SHORT, "others": ["mood"]}).apply(model, ctx)


def test_a_head_that_is_not_there(tmp_path: Path) -> None:
    model, _ = trained(steps=1)
    save(model, tmp_path)
    with pytest.raises(UserError, match="has heads for mood"):
        attar.load(tmp_path, head="modd")
    save(tiny_models.tiny("bert", "classification"), tmp_path / "plain")
    with pytest.raises(UserError, match="the one head of its own"):
        attar.load(tmp_path / "plain", head="mood")
