"""The cache at 8 bits: what is written lies on the grid, with a cache or without, in any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import attar
from attar.core.grid import Grid
from attar.core.registry import find
from attar.data.batches import held_out
from attar.layers import CacheGrid
from attar.models import Model, save
from attar.ops.activations import Range
from attar.ops.levels import snap
from attar.ops.rounding import round_scale
from conformance.test_every_kind import context
from tiny_models import DECODERS, batch, logits, press, tiny

SMALL: dict[str, Any] = {"sequences": 4, "length": 16, "batch": 2}


def applied(model: Model, folder: Path, kind: str = "quantize/kv", **settings: Any) -> Model:
    step = find(kind).model_validate({**SMALL, **settings})
    return step.apply(model, context(model, folder))


def grids(model: Model) -> list[CacheGrid]:
    return [part for part in model.module.modules() if isinstance(part, CacheGrid)]


def cached(model: Model, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The keys and values of each block that the model's own cache holds after `ids`."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model.module(input_ids=ids, past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


@pytest.mark.parametrize("cache", ["fp8-e4m3", "int8"])
@pytest.mark.parametrize("family", DECODERS)
def test_near_the_original_and_the_same_after_saving(
    family: str, cache: str, tmp_path: Path
) -> None:
    model = tiny(family)
    before = logits(model)
    pressed = applied(model, tmp_path, cache=cache)
    after = logits(pressed)
    assert pressed.simulated
    assert not torch.equal(after, before)
    assert (after - before).norm() < 0.2 * before.norm()
    save(pressed, tmp_path / "saved")
    loaded = attar.load(tmp_path / "saved")
    assert torch.equal(logits(loaded), after)
    assert len(grids(loaded)) == len(loaded.blocks)


@pytest.mark.parametrize("family", DECODERS)
def test_what_the_cache_holds_lies_on_the_grid(family: str, tmp_path: Path) -> None:
    pressed = applied(tiny(family), tmp_path)
    ids = batch(pressed, length=6).input_ids
    for (keys, values), grid in zip(cached(pressed, ids), grids(pressed), strict=True):
        for held, scale in ((keys, grid.key_scale), (values, grid.value_scale)):
            levels = held / scale.float()
            assert torch.equal(snap(levels.clone(), grid.grid), levels)


@pytest.mark.parametrize("family", DECODERS)
def test_token_by_token_is_as_all_at_once(family: str, tmp_path: Path) -> None:
    pressed = applied(tiny(family), tmp_path)
    ids = batch(pressed, rows=1, length=12).input_ids
    cache = DynamicCache(config=pressed.config)
    with torch.no_grad():
        whole = pressed.module(input_ids=ids, use_cache=False).logits
        steps = [
            pressed.module(input_ids=one, past_key_values=cache, use_cache=True).logits
            for one in ids.split(1, 1)
        ]
    # a number halfway between two levels may go either way with the order of a sum
    assert (torch.cat(steps, 1) - whole).norm() < 0.02 * whole.norm()


def test_scales_are_best_for_what_the_original_caches(tmp_path: Path) -> None:
    """After rotary positions: by brute force on the original's own cache."""
    original, pressed = tiny("qwen3"), applied(tiny("qwen3"), tmp_path)
    ctx = context(original, tmp_path)
    rows = held_out(ctx.data("train"), original.tokenizer, "causal-lm", 16, 2, 4)
    seen = [cached(original, one.input_ids) for one in rows]
    for block, grid in enumerate(grids(pressed)):
        for which, scale in enumerate((grid.key_scale, grid.value_scale)):
            numbers = torch.cat([one[block][which].flatten() for one in seen]).bfloat16().float()

            def lost(scale: float, numbers: Tensor = numbers) -> float:
                held = snap(numbers / scale, Grid.parse("fp8-e4m3")) * scale
                return float((held - numbers).double().square().sum())

            peak = float(numbers.abs().max()) / 448
            tried = [peak * (1 - 0.02 * step) for step in range(36)]
            assert lost(float(scale)) <= 1.02 * min(lost(one) for one in tried)


@pytest.mark.parametrize("name", ["int8-channel", "fp8-e4m3", "mxfp4"])
def test_one_scale_for_all_beats_the_largest(name: str) -> None:
    grid, numbers = Grid.parse(name), torch.randn(4000, generator=torch.Generator().manual_seed(0))
    numbers[0] = 12.0
    seen = Range()
    seen.add(numbers)
    numbers = numbers.bfloat16().float()

    def lost(scale: Tensor) -> float:
        return float((snap(numbers / scale, grid) * scale - numbers).square().sum())

    plain = round_scale(numbers.abs().max() / grid.ends[1], grid.powers)
    assert lost(seen.scale(grid)) <= lost(plain)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("quantize/gptq", {"grid": "int4-g32"}),
        ("quantize/awq", {"grid": "q4_1"}),
        ("lowrank/whitened", {"keep": 0.5}),
        ("prune/depth", {"remove": 1}),
    ],
)
def test_other_steps_may_come_before_or_after(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    first = applied(applied(tiny("llama"), tmp_path / "a", kind, **settings), tmp_path / "b")
    last = applied(applied(tiny("llama"), tmp_path / "c"), tmp_path / "d", kind, **settings)
    for model in (first, last):
        assert len(grids(model)) == len(model.blocks)
        after = logits(model)
        save(model, tmp_path / "saved")
        assert torch.equal(logits(attar.load(tmp_path / "saved")), after)


def test_a_second_time_looks_at_exact_keys_again(tmp_path: Path) -> None:
    once = applied(tiny("llama"), tmp_path / "a")
    twice = applied(applied(tiny("llama"), tmp_path / "b", cache="int8"), tmp_path / "c")
    before, after = once.module.state_dict(), twice.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gradients_pass_and_a_model_of_codes_is_taken(tmp_path: Path) -> None:
    pressed = applied(press(tiny("llama")), tmp_path, scope=["attention & blocks[1:]"])
    assert len(grids(pressed)) == 2
    embeddings = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    embeddings.requires_grad_(True)
    pressed.module(inputs_embeds=embeddings, use_cache=False).logits.sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_a_scope_without_an_attention_is_refused_beforehand() -> None:
    step = find("quantize/kv").model_validate({"scope": "mlp"})
    (reason,) = step.check(tiny("llama").facts())
    assert "names no linear of an attention" in reason
