"""Healing: the answers come nearer to the original's, and what must not move does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attar.core import registry
from attar.core.context import Context
from attar.data.example import Dataset, Example
from attar.errors import UserError
from attar.layers import QuantizedLinear
from attar.models import load, save
from attar.models.model import Model, weight_of
from attar.models.resize import drop_blocks
from attar.models.source import Files
from tiny_models import logits, texts, tiny

BLOCKWISE: dict[str, Any] = {"sequences": 32, "length": 16, "batch": 2, "learning_rate": 1e-3}
SCALES: dict[str, Any] = {"steps": 30, "batch": 4, "length": 16, "learning_rate": 3e-3}

LORA: dict[str, Any] = {"steps": 60, "batch": 4, "length": 16, "rank": 4, "learning_rate": 0.03}


def context(model: Model, scratch: Path | None = None) -> Context:
    labels = model.labels or (None,)
    rows = [Example(text, labels[i % len(labels)]) for i, text in enumerate(texts(60, 14))]
    data = Dataset("train", rows, "", tuple(model.labels))
    teacher = tiny(model.config.model_type, model.task)
    return Context(model.task, lambda _: data, lambda _: teacher, scratch=scratch)


def step(kind: str, model: Model, settings: dict[str, Any], ctx: Context | None = None) -> Model:
    return registry.find(kind).model_validate(settings).apply(model, ctx or context(model))


def distance(model: Model) -> float:
    """How far the answers are from the original's."""
    wanted = logits(tiny(model.config.model_type, model.task)).log_softmax(-1)
    found = logits(model).log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def rounded(family: str = "llama", task: Any = None, grid: str = "int2-g32-zp") -> Model:
    return step("quantize/rtn", tiny(family, task), {"grid": grid})


@pytest.mark.parametrize(
    ("family", "task"),
    [("llama", "causal-lm"), ("bert", "masked-lm"), ("bert", "classification"), ("gpt2", None)],
)
@pytest.mark.parametrize(
    ("kind", "settings", "kept"),
    [("scales", SCALES, "codes"), ("blockwise", BLOCKWISE, "codes"), ("lora", LORA, "scales")],
)
def test_a_rounded_model_comes_nearer_to_the_original(
    family: str, task: Any, kind: str, settings: dict[str, Any], kept: str
) -> None:
    model = rounded(family, task)
    before, buffers = distance(model), {n: b.clone() for n, b in model.module.named_buffers()}
    healed = step(f"heal/{kind}", model, settings)
    assert distance(healed) < before
    for name, part in healed.module.named_modules():
        if isinstance(part, QuantizedLinear):
            assert torch.equal(getattr(part, kept), buffers[f"{name}.{kept}"])
            assert not list(part.parameters(recurse=False)) or part.bias is not None


@pytest.mark.parametrize(("kind", "settings"), [("blockwise", BLOCKWISE), ("lora", LORA)])
def test_zeros_of_a_pruned_model_stay(kind: str, settings: dict[str, Any]) -> None:
    model = step("prune/magnitude", tiny("llama"), {"sparsity": 0.6})
    before, name = distance(model), "model.layers.1.mlp.up_proj"
    zeros = weight_of(model.module.get_submodule(name)) == 0
    healed = step(f"heal/{kind}", model, settings)
    assert distance(healed) < before
    assert torch.equal(weight_of(healed.module.get_submodule(name)) == 0, zeros)


def test_thin_factors_are_healed_too() -> None:
    model = step("lowrank/svd", tiny("llama"), {"keep": 0.4})
    before = distance(model)
    assert distance(step("heal/blockwise", model, BLOCKWISE)) < before


def test_blocks_that_were_healed_are_found_again(tmp_path: Path) -> None:
    calm = step("heal/blockwise", rounded(), BLOCKWISE)
    model = rounded()
    step("heal/blockwise", model, BLOCKWISE, context(model, tmp_path))
    (tmp_path / "blocks" / "00002.safetensors").unlink()
    resumed = step("heal/blockwise", rounded(), BLOCKWISE, context(model, tmp_path))
    wanted, found = calm.module.state_dict(), resumed.module.state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_a_block_that_healing_makes_worse_is_left_as_it_was() -> None:
    model = rounded()
    ctx = context(model)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    step("heal/blockwise", model, {**BLOCKWISE, "learning_rate": 100.0}, ctx)
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert ctx.curves["block error/before"] == ctx.curves["block error/after"]


def test_a_teacher_of_another_depth_is_refused() -> None:
    model = rounded()
    drop_blocks(model, [1])
    with pytest.raises(UserError, match="3 blocks of 32 channels and the model 2"):
        step("heal/blockwise", model, BLOCKWISE)
    narrow = step("prune/width", tiny("llama"), {"hidden": 16, "sequences": 4, "length": 16})
    with pytest.raises(UserError, match="of 32 channels and the model 3 blocks of 16"):
        step("heal/blockwise", narrow, BLOCKWISE)


def test_a_single_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="make one batch of 4, which leaves none to hold out"):
        registry.find("heal/blockwise").model_validate({"sequences": 4, "batch": 4})
    with pytest.raises(UserError, match="leaves none to hold out: lower `batch` below 200"):
        step("heal/blockwise", rounded(), {"sequences": 300, "length": 16, "batch": 200})


def test_bfloat16_weights_are_trained_in_float32(tmp_path: Path) -> None:
    save(tiny("llama"), tmp_path / "original")
    model = load(Files(tmp_path / "original"), dtype="bfloat16")
    step("prune/magnitude", model, {"sparsity": 0.6})
    before = {name: p.clone() for name, p in model.module.named_parameters()}
    healed = step("heal/blockwise", model, {**BLOCKWISE, "learning_rate": 1e-4})
    after = dict(healed.module.named_parameters())
    assert {p.dtype for p in after.values()} == {torch.bfloat16}
    name = "model.layers.1.mlp.up_proj.weight"
    moved = (after[name] != before[name]).float().mean()
    assert moved > 0.1  # steps of 1e-4 are lost on most numbers of bfloat16, one by one


@pytest.mark.parametrize(
    ("kind", "settings"), [("scales", SCALES), ("blockwise", BLOCKWISE), ("lora", LORA)]
)
def test_zeros_on_a_grid_with_zero_points_stay(kind: str, settings: dict[str, Any]) -> None:
    model = step("prune/magnitude", tiny("llama"), {"sparsity": 0.6})
    model = step("quantize/gptq", model, {"grid": "int4-g32-zp", "sequences": 4, "length": 16})
    name = "model.layers.1.mlp.up_proj"
    zeros = weight_of(model.module.get_submodule(name)) == 0
    healed = step(f"heal/{kind}", model, {**settings, "learning_rate": 0.05})
    assert (weight_of(healed.module.get_submodule(name)) == 0)[zeros].all()


def test_nothing_wants_a_gradient_afterwards_that_did_not_before() -> None:
    model = rounded()
    wanted = {name: p.requires_grad for name, p in model.module.named_parameters()}
    step("heal/scales", model, {**SCALES, "steps": 1})
    assert wanted == {name: p.requires_grad for name, p in model.module.named_parameters()}
