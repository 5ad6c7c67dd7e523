"""Masks and grids that training moves: zeros as scheduled, codes as seen, nothing left behind."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from attar.core import registry
from attar.core.context import Context
from attar.core.scope import Scope
from attar.data.example import Dataset, Example
from attar.errors import DataError, TrainingDiverged
from attar.layers import DynamicLinear, QuantizedLinear
from attar.models import Model, load, save
from attar.models.masks import is_masked, mark
from attar.models.model import weight_of
from attar.models.source import Files
from attar.ops.chunked import Mix
from attar.ops.sparse import Pattern
from attar.techniques.prune._ramp import Mask, Ramp
from attar.train.losses import Objective, judge
from attar.train.rows import held_out_of
from attar.train.schedule import Training
from tiny_models import assert_ordinary, logits, texts, tiny

PRUNING = ("prune/gradual", "prune/movement")
KINDS = (*PRUNING, "quantize/qat")
SMALL: dict[str, Any] = {"steps": 12, "batch": 2, "length": 16, "learning_rate": 1e-2}
MORE: dict[str, dict[str, Any]] = {
    "prune/gradual": {"every": 3},
    "prune/movement": {"every": 3},
    "quantize/qat": {"grid": "int2-g32"},
}


def context(model: Model, **more: Any) -> Context:
    labels = model.labels or (None,)
    rows = [Example(text, labels[i % len(labels)]) for i, text in enumerate(texts(60, 14))]
    data = Dataset("train", rows, "", tuple(model.labels))
    teacher = tiny(model.config.model_type, model.task)
    return Context(model.task, lambda _: data, lambda _: teacher, **more)


def applied(kind: str, model: Model, ctx: Context | None = None, **settings: Any) -> Model:
    step = registry.find(kind).model_validate({**SMALL, **MORE.get(kind, {}), **settings})
    return step.apply(model, ctx or context(model))


def linears(model: Model) -> dict[str, nn.Module]:
    return model.linears(Scope.linears())


def once(kind: str, **settings: Any) -> Model:
    """A tiny decoder after a step that trains nothing."""
    return registry.find(kind).model_validate(settings).apply(tiny("llama"), context(tiny("llama")))


def distance(model: Model, original: Model) -> float:
    wanted, found = logits(original).log_softmax(-1), logits(model).log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("kind", PRUNING)
def test_as_many_zeros_as_asked_for(kind: str, family: str, tmp_path: Path) -> None:
    model = tiny(family)
    ctx = context(model)
    pruned = applied(kind, model, ctx, sparsity=0.75)
    for name, linear in linears(pruned).items():
        weight = weight_of(linear)
        assert (weight == 0).sum() == round(0.75 * weight.numel()), name
        assert is_masked(linear)
    assert ctx.notes["zeros"].startswith("75.00%")
    assert_ordinary(pruned, tmp_path)


@pytest.mark.parametrize("kind", PRUNING)
def test_two_of_four(kind: str) -> None:
    for name, linear in linears(applied(kind, tiny("gpt2"), pattern="2:4")).items():
        gone = weight_of(linear) == 0
        assert (gone.reshape(len(gone), -1, 4).sum(2) == 2).all(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "task"), [("llama", None), ("bert", "classification")])
def test_bfloat16_models_keep_their_dtype(
    kind: str, family: str, task: Any, tmp_path: Path
) -> None:
    model = tiny(family, task, dtype=torch.bfloat16)
    ctx = context(model, precision="bf16")
    done = applied(kind, model, ctx, accumulate=2, steps=4)
    assert {p.dtype for p in done.module.parameters()} == {torch.bfloat16}
    save(done, tmp_path)
    assert torch.equal(logits(load(Files(tmp_path), done.task)), logits(done))


@pytest.mark.parametrize("settings", [{}, {"start": 0.25}, {"pattern": "2:4"}, {"ramp": 0.0}])
def test_zeros_rise_by_the_schedule(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks are those of the weights at each choice, by brute force; the rest of the time fixed."""
    seen: list[tuple[int, Tensor, Tensor]] = []
    own = Mask.renew

    def renew(self: Mask, weight: Tensor, step: int, steps: int) -> None:
        own(self, weight, step, steps)
        if self.mask.shape == (64, 32):
            seen.append((step, weight.clone(), self.mask.clone()))

    monkeypatch.setattr(Mask, "renew", renew)
    applied("prune/gradual", tiny("llama"), scope=["*layers.1.mlp.up_proj"], **settings)
    start, whole = settings.get("start", 0.0), 0 if "ramp" in settings else 6
    before = torch.ones(64, 32, dtype=torch.bool)
    for step, weight, mask in seen:
        if step % 3 == 0:
            done = min(step / whole, 1.0) if whole else 1.0
            sparsity = 0.5 + (start - 0.5) * (1 - done) ** 3
            assert int((~mask).sum()) == pytest.approx(sparsity * mask.numel(), abs=1)
            if "pattern" not in settings:
                assert weight[mask].abs().min() >= weight[~mask].abs().max() if sparsity else True
        else:
            assert torch.equal(mask, before)
        before = mask
    assert [step for step, _, _ in seen] == list(range(12))


def test_what_was_masked_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor] = []
    own = Mask.renew

    def renew(self: Mask, weight: Tensor, step: int, steps: int) -> None:
        own(self, weight, step, steps)
        masks.append(self.mask.clone())

    monkeypatch.setattr(Mask, "renew", renew)
    for kind in PRUNING:
        masks.clear()
        applied(kind, tiny("llama"), scope=["*layers.1.mlp.up_proj"], ramp=0.1)
        assert any((after & ~before).any() for before, after in pairwise(masks))
        assert {int((~mask).sum()) for mask in masks[2:]} == {64 * 32 // 2}


def test_the_first_that_movement_masks_are_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    own = Mask.renew

    def renew(self: Mask, weight: Tensor, step: int, steps: int) -> None:
        own(self, weight, step, steps)
        seen.append((weight.clone().abs(), self.mask.clone()))

    monkeypatch.setattr(Mask, "renew", renew)
    applied("prune/movement", tiny("llama"), scope=["*layers.1.mlp.up_proj"], ramp=0.0)
    sizes, mask = seen[0]
    assert int((~mask).sum()) * 2 == mask.numel()
    assert sizes[mask].min() >= 0.999999 * sizes[~mask].max()


def test_a_teacher_of_no_weight_is_not_asked() -> None:
    model = tiny("llama")
    ctx = context(model)
    ctx.model = lambda _: pytest.fail("the teacher was loaded")
    applied("prune/gradual", model, ctx, weight=0.0, steps=2)


@pytest.mark.parametrize("kind", PRUNING)
def test_no_state_with_too_few_zeros_is_kept(kind: str) -> None:
    """Training too slow to help: the first states are the best, and have too few zeros."""
    model = tiny("llama")
    ctx = context(model)
    settings = {"learning_rate": 1e-6, "evaluate_every": 1, "teacher": "original", "weight": 1.0}
    pruned = applied(kind, model, ctx, **settings)
    scores = [score for _, score in ctx.curves["loss/dev"]]
    assert scores.index(min(scores)) < 6
    assert ctx.notes["best"]["step"] == 7 + scores[6:].index(min(scores[6:]))
    for linear in linears(pruned).values():
        assert (weight_of(linear) == 0).sum() * 2 == weight_of(linear).numel()


def test_the_last_mask_comes_however_short_the_training() -> None:
    for steps in (1, 2, 3):
        pruned = applied("prune/gradual", tiny("llama"), steps=steps, ramp=0.9, every=100)
        for linear in linears(pruned).values():
            assert (weight_of(linear) == 0).sum() * 2 == weight_of(linear).numel()


def test_zeros_that_there_were_stay() -> None:
    model = once("prune/wanda", sequences=2, length=16, sparsity=0.3)
    before = {name: weight_of(linear) == 0 for name, linear in linears(model).items()}
    for kind in KINDS:
        start = tiny("llama")
        start.module.load_state_dict(model.module.state_dict())
        for linear in linears(start).values():
            mark(linear)
        for name, linear in linears(applied(kind, start)).items():
            gone = weight_of(linear) == 0
            assert gone[before[name]].all(), name
            assert kind not in PRUNING or int(gone.sum()) == gone.numel() // 2  # and they count
            assert is_masked(linear)


def test_gradual_is_nearer_than_one_shot() -> None:
    original, cut = tiny("llama"), once("prune/magnitude")
    pruned = applied("prune/gradual", tiny("llama"), steps=60)
    assert distance(pruned, original) < 0.9 * distance(cut, original)


def test_qat_is_nearer_than_rounding() -> None:
    original, rounded = tiny("llama"), once("quantize/rtn", grid="int2-g32")
    trained = applied("quantize/qat", tiny("llama"), steps=60)
    assert distance(trained, original) < 0.7 * distance(rounded, original)


@pytest.mark.parametrize("activations", ["none", "dynamic"])
@pytest.mark.parametrize("grid", ["int3-g32", "int4-g32-zp", "int8-channel"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_codes_are_those_that_were_judged(family: str, grid: str, activations: str) -> None:
    """The last evaluation of training is that of the quantized model."""
    model = tiny(family)
    ctx = context(model)
    settings = {"grid": grid, "activations": activations, "embeddings": "int8-channel"}
    rounded = applied("quantize/qat", model, ctx, **settings)
    kind = DynamicLinear if activations == "dynamic" else QuantizedLinear
    for linear in linears(rounded).values():
        assert type(linear) is kind
        assert not hasattr(linear, "gain")
    assert ctx.notes["best"]["loss"] == pytest.approx(judged(rounded, ctx), rel=1e-5)


def judged(model: Model, ctx: Context) -> float:
    """The loss that training judges by."""
    held = held_out_of("dev", model, Training.model_validate({"batch": 2, "length": 16}), ctx)
    mix = Mix(weight=1.0, task_weight=0.0)
    with torch.no_grad():
        return judge(Objective(model, ctx.model("original"), lambda _: mix), held, mix)()


def test_fixed_scales_are_those_of_rounding() -> None:
    grid = {"grid": "int3-g32"}
    plain = linears(once("quantize/rtn", **grid))
    for scales in ("fixed", "trained"):
        rounded = applied("quantize/qat", tiny("llama"), None, scales=scales, **grid)
        for name, linear in linears(rounded).items():
            same = torch.equal(linear.scales, plain[name].scales)  # type: ignore[arg-type]
            assert same == (scales == "fixed"), name


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_behind_when_training_fails(kind: str) -> None:
    model = tiny("llama")
    wanted = {name: p.requires_grad for name, p in model.module.named_parameters()}
    kinds = {name: type(part) for name, part in model.module.named_modules()}
    with pytest.raises(TrainingDiverged):
        applied(kind, model, learning_rate=1e30, clip=None, warmup=0.0)
    assert {name: type(part) for name, part in model.module.named_modules()} == kinds
    assert wanted == {name: p.requires_grad for name, p in model.module.named_parameters()}


def test_a_classifier_without_labels_needs_a_teacher() -> None:
    model = tiny("bert", "classification")
    rows = [Example(text, None) for text in texts(20, 14)]
    data = Dataset("train", rows, "", tuple(model.labels))
    ctx = Context(model.task, lambda _: data, lambda _: tiny("bert", "classification"))
    with pytest.raises(DataError, match="has no labels"):
        applied("prune/movement", model, ctx)
    applied("prune/movement", model, ctx, teacher="original", weight=1.0)


def test_a_ramp_that_falls_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"start: 0.6 is above the share of zeros"):
        registry.find("prune/gradual").model_validate({"start": 0.6})


def test_the_share_at_every_step() -> None:
    settings = Ramp.model_validate({"sparsity": 0.8, "start": 0.2, "ramp": 0.5})
    for step in range(20):
        expected = 0.8 + (0.2 - 0.8) * (1 - min(step / 10, 1)) ** 3
        assert settings.share(step, 20) * 0.8 == pytest.approx(expected)
    assert settings.wanted() == Pattern(0.8)
