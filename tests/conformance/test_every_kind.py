"""What holds for every technique, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from attar.core import registry
from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.traits import QUANTIZED
from attar.data.example import Dataset, Example
from attar.engine.plan import traits_of
from attar.models import Model, load, save
from attar.models.masks import mark
from attar.models.model import set_weight, weight_of
from attar.models.source import Files

SMALL: dict[str, dict[str, Any]] = {
    "adapt/full": {"steps": 2, "batch": 2, "length": 16},
    "distill/logits": {"steps": 2, "batch": 2, "length": 16},
    "heal/blockwise": {"sequences": 4, "batch": 1, "length": 16, "epochs": 2},
    "heal/scales": {"steps": 2, "batch": 2, "length": 16},
    "lowrank/fisher": {"keep": 0.5, "sequences": 2, "length": 16},
    "lowrank/svd": {"keep": 0.5},
    "lowrank/whitened": {"keep": 0.5, "sequences": 2, "length": 16},
    "prune/depth": {"remove": 1, "sequences": 2, "length": 16},
    "prune/magnitude": {},
    "prune/sparsegpt": {"pattern": "2:4", "sequences": 16, "length": 16},
    "prune/wanda": {"sequences": 2, "length": 16},
    "prune/width": {"fraction": 0.5, "multiple": 8, "sequences": 2, "length": 16},
    "quantize/awq": {"grid": "int4-g32", "sequences": 2, "length": 16},
    "quantize/dynamic": {},
    "quantize/gptq": {"grid": "int4-g32", "sequences": 2, "length": 16},
    "quantize/hqq": {"grid": "int4-g32-min"},
    "quantize/kv": {"sequences": 2, "length": 16},
    "quantize/mixed": {"sequences": 2, "measured": 2, "length": 16, "bits": 3.5},
    "quantize/rtn": {"grid": "int4-g32"},
    "quantize/smoothquant": {"sequences": 2, "length": 16},
    "quantize/static": {"sequences": 2, "length": 16},
}
PLACES = [("llama", "causal-lm"), ("bert", "masked-lm"), ("bert", "classification")]
CASES = [
    (kind, *place)
    for kind in registry.kinds()
    for place in PLACES
    if place[1] in registry.find(kind).tasks
]
NO_ZERO = {"quantize/hqq"}  # pruned weights are refused
CACHES = {"quantize/kv"}
WHOLE = {"prune/depth", "prune/width"}  # they cut through all modules, or through none
SCOPED = [case for case in CASES if case[0] not in WHOLE]


def context(model: Model, folder: Path, seed: int = 0) -> Context:
    """Data that the tiny tokenizer knows, and the original as the teacher."""
    labels = model.labels or (None,)
    examples = [
        Example(text, labels[number % len(labels)])
        for number, text in enumerate(tiny_models.texts(count=40, length=14))
    ]
    data = Dataset("train", examples, "fingerprint", tuple(model.labels))
    teacher = tiny_models.tiny(model.config.model_type, model.task)
    folder.mkdir(parents=True, exist_ok=True)
    return Context(
        model.task, lambda _: data, lambda _: teacher, seed=seed, scratch=folder / "scratch"
    )


def start(kind: str, model_type: str, task: Any) -> Model:
    """A tiny model that a step of this kind has work on: rounded, or not as good as its teacher."""
    cls = registry.find(kind)
    model = tiny_models.tiny(model_type, task)
    if QUANTIZED in cls.needs:
        return tiny_models.press(model)
    if cls.reading("model"):
        for linear in model.linears(Scope.linears()).values():
            set_weight(linear, (weight_of(linear) * 4).round() / 4)
    return model


def press(kind: str, model: Model, folder: Path, **more: Any) -> Model:
    """The model after one step of this kind."""
    step = registry.find(kind).model_validate({**SMALL[kind], **more})
    ctx = context(model, folder)
    if ctx.scratch is not None:
        ctx.scratch.mkdir(exist_ok=True)
    return step.apply(model, ctx)


def test_every_kind_is_tried():
    assert set(SMALL) == set(registry.kinds())


@pytest.mark.parametrize("entry", registry.entries(), ids=lambda entry: entry.kind)
def test_kind_is_path_and_summary_stands_alone(entry: registry.Entry):
    cls = registry.find(entry.kind)
    assert cls.kind == entry.kind
    assert 10 < len(entry.summary) <= 100
    assert all(field.description for field in cls.model_fields.values())


@pytest.mark.parametrize(("kind", "model_type", "task"), CASES)
def test_saves_and_loads_bit_equal(kind: str, model_type: str, task: Any, tmp_path: Path):
    pressed = press(kind, start(kind, model_type, task), tmp_path / "work")
    save(pressed, tmp_path / "saved")
    loaded = load(Files(tmp_path / "saved"), task)
    assert torch.equal(tiny_models.logits(pressed), tiny_models.logits(loaded))


@pytest.mark.parametrize(("kind", "model_type", "task"), CASES)
def test_same_seed_same_weights(kind: str, model_type: str, task: Any, tmp_path: Path):
    first, second = (
        press(kind, start(kind, model_type, task), tmp_path / name).module.state_dict()
        for name in "ab"
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("kind", "model_type", "task"), SCOPED)
def test_modules_outside_the_scope_are_untouched(
    kind: str, model_type: str, task: Any, tmp_path: Path
):
    scope = [f"{'attention' if kind in CACHES else 'mlp'} & blocks[1]"]
    model = start(kind, model_type, task)
    chosen = tuple(f"{name}." for name in model.select(Scope(patterns=tuple(scope))))
    if kind in CACHES:  # what is in scope is the attention, whatever of it is named
        chosen = tuple({f"{name.rpartition('.')[0].rpartition('.')[0]}." for name in chosen})
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    after = press(kind, model, tmp_path, scope=scope).module.state_dict()
    changed = {
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or not torch.equal(before[name], after[name])
    }
    assert changed
    assert {name for name in changed if not name.startswith(chosen)} == set()


@pytest.mark.parametrize(("kind", "model_type", "task"), CASES)
def test_declared_traits_hold(kind: str, model_type: str, task: Any, tmp_path: Path):
    """The scope loses and gains what its step declares; nothing else loses or gains a trait."""
    cls, model = registry.find(kind), start(kind, model_type, task)
    for linear in model.linears(Scope.linears()).values() if kind not in NO_ZERO else ():
        mark(linear)
    norms = {fact.name for fact in model.facts() if fact.role == "norm"}  # always float
    chosen = set(model.select(cls.model_validate(SMALL[kind]).scope)) - norms
    before = traits_of(model.module, model.facts())
    pressed = press(kind, model, tmp_path)
    assert chosen
    for name, found in traits_of(pressed.module, pressed.facts()).items():
        whole = name if name in before else name.rpartition(".")[0]  # of two factors
        declared = (before[whole] - cls.removes) | cls.adds
        assert found == (declared if whole in chosen else before[whole]), name


@pytest.mark.parametrize(("kind", "model_type", "task"), CASES)
def test_the_plan_foresees_the_modules(kind: str, model_type: str, task: Any, tmp_path: Path):
    model = start(kind, model_type, task)
    step = registry.find(kind).model_validate(SMALL[kind])
    foreseen = list(step.reshape(model.facts()))
    assert list(step.check(model.facts())) == []
    found = press(kind, model, tmp_path).facts()
    assert [(fact.name, fact.shape) for fact in found] == [(f.name, f.shape) for f in foreseen]
