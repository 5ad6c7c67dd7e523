"""Distillation from a teacher: it comes nearer, on every task, and refuses what cannot work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny_models
from attar.core.context import Context
from attar.core.step import Task
from attar.data.batches import Batch
from attar.data.example import Dataset, Example
from attar.errors import DataError, UserError
from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.techniques.adapt.full import Full
from attar.techniques.distill.logits import Logits
from attar.train.losses import Objective, judge
from attar.train.rows import held_out_of
from attar.train.teacher import ready
from train.small import dataset, equal, weights

PLACES: list[tuple[str, Task]] = [
    ("llama", "causal-lm"),
    ("gemma2", "causal-lm"),
    ("gpt2", "causal-lm"),
    ("bert", "masked-lm"),
    ("electra", "masked-lm"),
    ("modernbert", "masked-lm"),
    ("bert", "classification"),
]
SHORT: dict[str, Any] = {"batch": 4, "length": 16, "steps": 12, "learning_rate": 3e-3}


def context(teacher: Model, labeled: int | None = None, **more: Any) -> Context:
    data = {"train": dataset(labeled=labeled), "dev": dataset("dev", 12)}
    return Context(teacher.task, data.__getitem__, lambda name: teacher, **more)


def apart(student: Model, teacher: Model, direction: Any = "forward") -> float:
    """How far apart the two are on the held-out data, at temperature 1."""
    held = held_out_of("dev", student, Logits(**SHORT), context(teacher))
    with torch.no_grad():
        return judge(Objective(student, teacher), held, Mix(direction, 1.0, 1.0, 0.0))()


@pytest.mark.parametrize(("model_type", "task"), PLACES)
def test_comes_nearer_to_the_teacher(model_type: str, task: Task) -> None:
    teacher, student = (tiny_models.tiny(model_type, task, seed=seed) for seed in (1, 0))
    before = apart(student, teacher)
    ctx = context(teacher)
    Logits(**SHORT).apply(student, ctx)
    assert apart(student, teacher) < 0.9 * before
    assert {"loss/divergence", "loss/task", "loss/dev"} <= ctx.curves.keys()


@pytest.mark.parametrize(
    "settings",
    [
        {"divergence": "reverse"},
        {"divergence": "jensen-shannon", "share": 0.3},
        {"divergence": "skewed"},
        {"divergence": "skewed-reverse"},
        {"divergence": "total-variation"},
        {"divergence": "logits"},
        {"targets": "hard"},
        {"temperature": 3.0},
        {"weight": 1.0, "weight_end": 0.0},
    ],
    ids=str,
)
def test_every_variant_comes_nearer(settings: dict[str, Any]) -> None:
    teacher, student = tiny_models.tiny("llama", seed=1), tiny_models.tiny("llama")
    direction = settings.get("divergence", "forward")
    before = apart(student, teacher, direction)
    Logits(**{**SHORT, "steps": 24, **settings}).apply(student, context(teacher))
    assert apart(student, teacher, direction) < before


class Seen(TorchDispatchMode):
    """The largest tensor of floats made while this lasts, and the most logits there are at once.

    What logits are is told by their last size, which nothing else has.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.largest, self.most = classes, 0, 0
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                continue
            self.largest = max(self.largest, tensor.numel())
            if tensor.shape[-1:] == (self.classes,):
                storage = tensor.untyped_storage()
                size = storage.nbytes() // tensor.element_size()
                self.alive[storage._cdata] = StorageWeakRef(storage), size
        self.alive = {at: one for at, one in self.alive.items() if not one[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return made


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("gemma2", {"weight": 0.5}),  # its head is more than a linear
        ("bert", {}),
        ("llama", {"also": {"hidden": {}, "attention": {}}}),
        ("llama", {"cache": {"top": 8}, "batch": 32}),
        ("llama", {"cache": {"sampled": 8}, "batch": 32}),
    ],
    ids=str,
)
def test_all_logits_are_never_there_at_once(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Neither on the way forward nor back, of teacher or student, nor where states are judged."""
    classes, rows, length = 3001, settings.get("batch", 64), 64
    teacher, student = (tiny_models.tiny(family, vocab_size=classes, seed=s) for s in (1, 0))
    data = Dataset("train", [Example(text) for text in tiny_models.texts(rows, length)], "some")
    ctx = Context(teacher.task, lambda _: data, lambda _: teacher, beside=lambda _: tmp_path)
    step = Logits.model_validate(
        {"batch": rows, "length": length, "steps": 1, "evaluate_on": rows, **settings}
    )
    with Seen(classes) as seen:
        step.apply(student, ctx)
    all_of_them = rows * length * classes
    assert "loss/dev" in ctx.curves
    assert 100 * classes < seen.largest < all_of_them / 3
    assert seen.most < all_of_them


def test_a_share_of_no_mixture_is_refused() -> None:
    with pytest.raises(ValueError, match="`share` says nothing of reverse"):
        Logits(divergence="reverse", share=0.5)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_teacher_stays_as_it_is(precision: str) -> None:
    teacher, student = tiny_models.tiny("llama", seed=1), tiny_models.tiny("llama")
    before = weights(teacher)
    Logits(**{**SHORT, "steps": 2}).apply(student, context(teacher, precision=precision))
    assert equal(weights(teacher), before)
    assert {parameter.dtype for parameter in student.module.parameters()} == {torch.float32}


def test_a_model_can_be_its_own_teacher() -> None:
    student = tiny_models.tiny("llama")
    Logits(**{**SHORT, "steps": 2, "weight": 0.5}).apply(student, context(student))


def test_precision_makes_little_difference() -> None:
    teacher, found = tiny_models.tiny("llama", seed=1), []
    for precision in ("float32", "bf16"):
        student = tiny_models.tiny("llama")
        Logits(**SHORT).apply(student, context(teacher, precision=precision))
        found.append(apart(student, teacher))
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_the_weight_moves_evenly() -> None:
    model = tiny_models.tiny("llama")
    step = Logits(weight=0.9, weight_end=0.1)
    assert step.mix(model, 0.0) == Mix("forward", 1.0, 0.9, pytest.approx(0.1))
    assert step.mix(model, 0.5).weight == pytest.approx(0.5)
    assert step.mix(model, 1.0).weight == pytest.approx(0.1)
    assert Logits().mix(model, 0.7) == Mix("forward", 1.0, 1.0, 0.0)
    classifier = tiny_models.tiny("bert", "classification")
    assert Logits().mix(classifier, 0.0).temperature == 2.0
    assert Logits(temperature=1.5).mix(classifier, 0.0).temperature == 1.5


def test_rows_without_a_label_count_with_the_divergence_alone() -> None:
    """The loss of a half labeled batch is the mean of what each row adds by itself."""
    student = tiny_models.tiny("bert", "classification")
    teacher = tiny_models.tiny("bert", "classification", seed=1)
    ids = torch.randint(6, 90, (4, 10))
    batch = Batch(ids, torch.ones_like(ids), torch.tensor([1, -100, 2, -100]))
    mix = Mix("forward", 2.0, 0.6, 0.4)
    objective = Objective(student, teacher, lambda _: mix)
    each = 0.0
    own = student.logits(batch).detach().double()
    theirs = teacher.logits(batch).detach().double()
    for row, label in enumerate(batch.labels.tolist()):
        p, q = torch.softmax(theirs[row] / 2, -1), torch.softmax(own[row] / 2, -1)
        each += 0.6 * 4 * float((p * (p / q).log()).sum())
        if label >= 0:
            each -= 0.4 * float(own[row].log_softmax(-1)[label])
    found = objective(batch, 0.0)
    assert found.count == 4
    assert float(found.value.detach()) == pytest.approx(each / 4, rel=1e-4)
    assert found.parts["task"][1] == 2
    alone = Objective(student)(batch, 0.0)
    assert alone.count == 2
    assert float(alone.value.detach()) == pytest.approx(found.parts["task"][0], rel=1e-5)


def test_learns_from_unlabeled_rows() -> None:
    student = tiny_models.tiny("bert", "classification")
    teacher = tiny_models.tiny("bert", "classification", seed=1)
    before = apart(student, teacher)
    Logits(**{**SHORT, "steps": 20, "weight": 0.5}).apply(student, context(teacher, labeled=0))
    assert apart(student, teacher) < 0.9 * before


def test_fine_tuning_needs_labels() -> None:
    student = tiny_models.tiny("bert", "classification")
    with pytest.raises(DataError, match="no labels"):
        Full(**SHORT).apply(student, context(student, labeled=0))
    Full(**{**SHORT, "steps": 2}).apply(student, context(student, labeled=5))


def other_words(model: Model) -> None:
    model.tokenizer = tiny_models.tokenizer.__wrapped__()
    model.tokenizer.add_tokens(["another"])


def other_size(model: Model) -> None:
    model.module.config.vocab_size += 1


@pytest.mark.parametrize("change", [other_words, other_size])
def test_another_vocabulary_is_refused(change: Callable[[Model], None]) -> None:
    teacher, student = tiny_models.tiny("llama", seed=1), tiny_models.tiny("llama")
    change(teacher)
    with pytest.raises(UserError, match=r"different vocabularies.*cross-tokenizer"):
        Logits(**SHORT).apply(student, context(teacher))


def test_a_classifier_of_another_vocabulary_is_to_label() -> None:
    teacher, student = (tiny_models.tiny("bert", "classification", seed=seed) for seed in (1, 0))
    other_words(teacher)
    with pytest.raises(UserError, match=r"different vocabularies.*data/label with `probabilities"):
        Logits(**SHORT).apply(student, context(teacher))


def test_other_classes_and_tasks_are_refused() -> None:
    student = tiny_models.tiny("bert", "classification")
    teacher = tiny_models.tiny("bert", "classification", seed=1)
    teacher.labels = ("good", "bad", "mixed")
    with pytest.raises(UserError, match="same order"):
        ready(teacher, student, 64, context(teacher))
    with pytest.raises(UserError, match="teacher of the same task"):
        ready(tiny_models.tiny("bert", "masked-lm"), student, 64, context(teacher))
