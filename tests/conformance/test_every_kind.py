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
from attar.data.example import Dataset, Example
from attar.models import Model, load, save
from attar.models.source import Files

SMALL: dict[str, dict[str, Any]] = {
    "adapt/full": {"steps": 2, "batch": 2, "length": 16},
    "distill/logits": {"steps": 2, "batch": 2, "length": 16},
    "lowrank/svd": {"keep": 0.5},
    "lowrank/whitened": {"keep": 0.5, "sequences": 2, "length": 16},
    "prune/depth": {"remove": 1, "sequences": 2, "length": 16},
    "prune/magnitude": {},
    "prune/sparsegpt": {"pattern": "2:4", "sequences": 2, "length": 16},
    "prune/wanda": {"sequences": 2, "length": 16},
    "prune/width": {"fraction": 0.5, "multiple": 8, "sequences": 2, "length": 16},
    "quantize/gptq": {"grid": "int4-g32", "sequences": 2, "length": 16},
    "quantize/rtn": {"grid": "int4-g32"},
}
PLACES = [("llama", "causal-lm"), ("bert", "masked-lm"), ("bert", "classification")]
CASES = [(kind, *place) for kind in registry.kinds() for place in PLACES]


def context(model: Model, folder: Path, seed: int = 0) -> Context:
    """Data that the tiny tokenizer knows, and the model itself as the teacher."""
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


def press(kind: str, model_type: str, task: Any, folder: Path, **more: Any) -> Model:
    """A tiny model after one step of this kind."""
    step = registry.find(kind).model_validate({**SMALL[kind], **more})
    model = tiny_models.tiny(model_type, task)
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
    pressed = press(kind, model_type, task, tmp_path / "work")
    save(pressed, tmp_path / "saved")
    loaded = load(Files(tmp_path / "saved"), task)
    assert torch.equal(tiny_models.logits(pressed), tiny_models.logits(loaded))


@pytest.mark.parametrize(("kind", "model_type", "task"), CASES)
def test_same_seed_same_weights(kind: str, model_type: str, task: Any, tmp_path: Path):
    first = press(kind, model_type, task, tmp_path / "a").module.state_dict()
    second = press(kind, model_type, task, tmp_path / "b").module.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", [k for k in registry.kinds() if k.startswith("quantize/")])
def test_modules_outside_the_scope_are_untouched(kind: str, tmp_path: Path):
    scope = ["mlp & blocks[1]"]
    pressed = press(kind, "llama", "causal-lm", tmp_path, scope=scope)
    chosen = set(tiny_models.tiny("llama").select(Scope(patterns=tuple(scope))))
    before, after = tiny_models.tiny("llama").module.state_dict(), pressed.module.state_dict()
    for name, tensor in before.items():
        if name.rpartition(".")[0] not in chosen:
            assert torch.equal(tensor, after[name]), name
    assert chosen
    assert not any(f"{name}.weight" in after for name in chosen)
