"""What holds for every technique that makes a model, whoever wrote it."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

import data_steps
import tiny_media
import tiny_models
from attar.core import registry
from attar.core.context import Context
from attar.core.scope import Scope
from attar.core.traits import ADAPTER, FLOAT, QUANTIZED, UNEVEN
from attar.data.example import Dataset, Example
from attar.models import Model, load, save
from attar.models.masks import mark
from attar.models.model import set_weight, weight_of
from attar.models.source import Files
from attar.models.traits import traits_of

SMALL: dict[str, dict[str, Any]] = {
    "adapt/dora": {"steps": 2, "batch": 2, "length": 16, "leaves": "adapter"},
    "adapt/full": {"steps": 2, "batch": 2, "length": 16},
    "adapt/lora": {"steps": 2, "batch": 2, "length": 16, "leaves": "adapter"},
    "adapt/tasks": {"steps": 2, "batch": 2, "length": 16, "others": ["mood"]},
    "distill/auto": {"tokens": 256, "length": 16},
    "distill/attention": {"steps": 2, "batch": 2, "length": 16},
    "distill/continual": {"steps": 2, "batch": 2, "length": 16, "earlier": ["before"]},
    "distill/cross-tokenizer": {"steps": 2, "batch": 2, "length": 16, "teacher": "other"},
    "distill/contrastive": {"steps": 2, "batch": 4, "length": 16},
    "distill/hidden": {"steps": 2, "batch": 2, "length": 16},
    "distill/logits": {"steps": 2, "batch": 2, "length": 16},
    "distill/sequence": {
        "steps": 2,
        "batch": 2,
        "length": 16,
        "prompts": 4,
        "prompt_tokens": 4,
        "new_tokens": 8,
    },
    "distill/online": {"steps": 2, "batch": 2, "length": 16},
    "heal/auto": {"tokens": 1024, "length": 16},
    "distill/multi-teacher": {"steps": 2, "batch": 2, "length": 16, "teachers": ["one", "other"]},
    "distill/routed": {
        "steps": 2,
        "batch": 2,
        "length": 16,
        "teachers": ["one", "other"],
        "data": ["train", "more"],
    },
    "distill/on-policy": {"steps": 2, "batch": 2, "length": 16, "prompt": 8},
    "adapt/pretrain": {"steps": 2, "batch": 2, "length": 16, "next_sentence": 0.0},
    "distill/embedding": {"steps": 2, "batch": 2, "length": 16},
    "distill/pretrain": {"steps": 2, "batch": 2, "length": 16, "next_sentence": 0.0},
    "heal/blockwise": {"sequences": 4, "batch": 1, "length": 16, "epochs": 2},
    "heal/lora": {"steps": 2, "batch": 2, "length": 16, "learning_rate": 0.1},
    "heal/scales": {"steps": 2, "batch": 2, "length": 16},
    "lowrank/balanced": {"keep": 0.5, "sequences": 2, "measured": 2, "length": 16},
    "lowrank/fisher": {"keep": 0.5, "sequences": 2, "length": 16},
    "lowrank/residual": {"rank": 4, "grid": "int3-g32", "sequences": 2, "length": 16},
    "lowrank/svd": {"keep": 0.5},
    "lowrank/whitened": {"keep": 0.5, "sequences": 2, "length": 16},
    "prompt/p-tuning": {"steps": 2, "batch": 2, "length": 16, "size": 3},
    "prompt/prefix": {"steps": 2, "batch": 2, "length": 16, "size": 3},
    "prompt/soft": {"steps": 2, "batch": 2, "length": 16, "size": 3},
    "prune/depth": {"remove": 1, "sequences": 2, "length": 16},
    "prune/early-exit": {"steps": 2, "batch": 2, "length": 16, "neurons": 8},
    "prune/gradual": {"steps": 4, "batch": 2, "length": 16, "every": 1},
    "prune/heads": {"fraction": 0.5, "sequences": 2, "length": 16},
    "prune/magnitude": {},
    "prune/movement": {"steps": 4, "batch": 2, "length": 16, "every": 1},
    # so few stay that no block can keep all of its own
    "prune/neurons": {
        "fraction": 0.25,
        "share": "uneven",
        "multiple": 4,
        "sequences": 2,
        "length": 16,
    },
    "prune/share": {"distinct": 2},
    "prune/sparsegpt": {"pattern": "2:4", "sequences": 16, "length": 16},
    "prune/wanda": {"sequences": 2, "length": 16},
    "prune/width": {"fraction": 0.5, "multiple": 8, "sequences": 2, "length": 16},
    "quantize/autoround": {
        "grid": "int4-g32",
        "sequences": 4,
        "batch": 1,
        "length": 16,
        "steps": 4,
    },
    "quantize/awq": {"grid": "int4-g32", "sequences": 2, "length": 16},
    "quantize/dynamic": {},
    "quantize/gptq": {"grid": "int4-g32", "sequences": 2, "length": 16},
    "quantize/hqq": {"grid": "int4-g32-min"},
    "quantize/kv": {"sequences": 2, "length": 16},
    "quantize/mixed": {"sequences": 2, "measured": 2, "length": 16, "bits": 3.5},
    "quantize/qat": {"grid": "int4-g32", "steps": 2, "batch": 2, "length": 16},
    "quantize/rtn": {"grid": "int4-g32"},
    "quantize/smoothquant": {"sequences": 16, "length": 16},
    "quantize/static": {"sequences": 2, "length": 16},
}
PLACES = [
    ("llama", "causal-lm"),
    ("bert", "masked-lm"),
    ("bert", "classification"),
    ("bert", "embedding"),
]
MEDIA = [*tiny_media.MODELS]  # they see or hear
CASES = [
    (kind, *place)
    for kind in SMALL
    for place in (*PLACES, *(MEDIA if registry.find(kind).media else ()))
    if place[1] in registry.find(kind).tasks
]
# They cut through all modules, or through none; or their modules are none of the model's own.
PROMPTS = {"prompt/p-tuning", "prompt/prefix", "prompt/soft"}
WHOLE = {
    "prune/depth",
    "prune/share",
    "prune/width",
    "prune/early-exit",
    "adapt/tasks",
    *PROMPTS,
}
UNMASKED = {"quantize/hqq", "adapt/lora", "adapt/dora"}  # pruned weights are refused
CACHES = {"quantize/kv"}
SCOPED = [case for case in CASES if case[0] not in WHOLE]
ATTENTION = {"prune/heads", *CACHES}  # they touch no MLP
# A GPU draws other numbers than a processor: where an adapter begins, what drops out.
CHANCE = {"heal/auto", "heal/lora", "prune/gradual", "prune/movement"}
# How much each part is given is known once it is measured.
SHARED_OUT = {"lowrank/balanced", "prune/neurons"}


def context(model: Model, folder: Path, seed: int = 0) -> Context:
    """Data that the tiny tokenizer knows, and the original as the teacher, where the model is."""
    labels = model.labels or (None,)
    examples = [
        Example(text, labels[number % len(labels)])
        for number, text in enumerate(tiny_models.texts(count=40, length=14))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    data = Dataset("train", examples, "fingerprint", tuple(model.labels))
    if model.family.media:
        data = tiny_media.dataset(model, folder / "files")
    teacher = tiny(model.config.model_type, model.task)
    teacher.module.to(model.device)
    return Context(
        model.task,
        lambda _: data,
        lambda _: teacher,
        seed=seed,
        device=str(model.device),
        scratch=folder / "scratch",
    )


def tiny(model_type: str, task: Any) -> Model:
    """A random tiny model of any family."""
    if (model_type, task) in MEDIA:
        return tiny_media.tiny(model_type)
    return tiny_models.tiny(model_type, task)


def answers(model: Model) -> torch.Tensor:
    """What a tiny model makes of always the same batch."""
    return tiny_media.outputs(model) if model.family.media else tiny_models.logits(model)


def start(kind: str, model_type: str, task: Any) -> Model:
    """A tiny model that a step of this kind has work on: rounded, or not as good as its teacher."""
    cls = registry.find(kind)
    model = tiny(model_type, task)
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
    assert set(SMALL) == set(registry.kinds()) - set(data_steps.kinds())


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
    assert torch.equal(answers(pressed), answers(loaded))


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
    scope = [f"{'attention' if kind in ATTENTION else 'mlp'} & blocks[1]"]
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
    """What a step touches loses and gains what it declares; nothing else any trait."""
    step, model = registry.find(kind).model_validate(SMALL[kind]), start(kind, model_type, task)
    for linear in model.linears(Scope.linears()).values() if kind not in UNMASKED else ():
        mark(linear)
    norms = {fact.name for fact in model.facts() if fact.role == "norm"}  # always float
    chosen = set(step.touched(model.facts())) - norms
    before = traits_of(model.module, model.facts())
    pressed = press(kind, model, tmp_path)
    assert chosen or step.adds & {UNEVEN, ADAPTER}  # a config may say all, settings nothing
    for name, found in traits_of(pressed.module, pressed.facts()).items():
        whole = name if name in before else name.rpartition(".")[0]  # of two factors
        if whole not in before:  # a module that was added
            assert found == {FLOAT}, name
            continue
        declared = (before[whole] - step.removes) | step.adds
        assert found == (declared if whole in chosen else before[whole]), name


@pytest.mark.parametrize(("kind", "model_type", "task"), CASES)
def test_the_plan_foresees_the_modules(kind: str, model_type: str, task: Any, tmp_path: Path):
    model = start(kind, model_type, task)
    step = registry.find(kind).model_validate(SMALL[kind])
    foreseen = list(step.reshape(model.facts()))
    assert list(step.check(model.facts())) == []
    found = press(kind, model, tmp_path).facts()
    assert [fact.name for fact in found] == [fact.name for fact in foreseen]
    if kind in SHARED_OUT:
        whole = sum(prod(fact.shape) for fact in foreseen)
        assert sum(prod(fact.shape) for fact in found) == pytest.approx(whole, rel=0.2)
    else:
        assert [fact.shape for fact in found] == [fact.shape for fact in foreseen]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("kind", "model_type", "task"), CASES)
def test_a_gpu_makes_it_too(kind: str, model_type: str, task: Any, tmp_path: Path):
    model = start(kind, model_type, task)
    model.module.to("cuda")
    pressed = press(kind, model, tmp_path / "there")
    assert {each.device.type for each in pressed.module.state_dict().values()} == {"cuda"}
    save(pressed, tmp_path / "saved")
    pressed.module.to("cpu")
    assert torch.equal(answers(pressed), answers(load(Files(tmp_path / "saved"), task)))
    if kind in CHANCE:
        return
    here = answers(press(kind, start(kind, model_type, task), tmp_path / "here"))
    assert (answers(pressed) - here).norm() < 0.4 * here.norm()
