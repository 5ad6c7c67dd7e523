"""Fewer blocks: the rest computes what it would with those skipped."""

from __future__ import annotations

import pytest
import torch

from attar.core.recipe import ModelSource
from attar.errors import UserError
from attar.models import load, save
from attar.models.blocks import after, recorded, without
from attar.models.resize import drop_blocks
from tiny_models import PAIRS, assert_ordinary, batch, logits, press, tiny

every = pytest.mark.parametrize(("family", "task"), PAIRS)


@every
@pytest.mark.parametrize("gone", [[1], [2], [1, 2]])
def test_dropped_blocks_are_as_if_skipped(family, task, gone, tmp_path) -> None:
    model = tiny(family, task)
    with without(model, gone):
        expected = logits(model)
    before = {id(module) for index, module in enumerate(model.blocks) if index not in gone}
    drop_blocks(model, gone)
    assert {id(module) for module in model.blocks} == before
    assert model.config.num_hidden_layers == len(model.blocks) == 3 - len(gone)
    assert torch.equal(logits(model), expected)
    assert_ordinary(model, tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2", "gpt2", "phi3"])
def test_a_shallower_decoder_generates_with_its_cache(family) -> None:
    model = tiny(family)
    drop_blocks(model, [0])
    indices = [m.layer_idx for b in model.blocks for m in b.modules() if hasattr(m, "layer_idx")]
    assert set(indices) == {0, 1}
    ids = batch(model, rows=1, length=5).input_ids
    with torch.no_grad():
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        cached = model.module.generate(ids, **options)
        plain = model.module.generate(ids, **options, use_cache=False)
    assert torch.equal(cached, plain)


def test_kinds_of_blocks_go_with_them() -> None:
    model = tiny("qwen2")
    assert model.config.layer_types == ["full_attention", *["sliding_attention"] * 2]
    drop_blocks(model, [0])
    assert model.config.layer_types == ["sliding_attention"] * 2
    assert model.config.max_window_layers == 0


def test_blocks_of_a_quantized_model_can_go(tmp_path) -> None:
    model = press(tiny("llama"))
    drop_blocks(model, [1])
    expected = logits(model)
    save(model, tmp_path)
    assert torch.equal(logits(load(ModelSource(path=str(tmp_path)))), expected)


def test_blocks_that_cannot_go() -> None:
    with pytest.raises(UserError, match="there is no block 3: the model has blocks 0 to 2"):
        drop_blocks(tiny("llama"), [3])
    with pytest.raises(UserError, match="all 3 blocks would be removed; at least one"):
        drop_blocks(tiny("llama"), [0, 1, 2])
    with pytest.raises(UserError, match=r"block 0 of modernbert .* must stay"):
        drop_blocks(tiny("modernbert"), [0])
    with pytest.raises(UserError, match="scale_attn_by_inverse_layer_idx"):
        drop_blocks(tiny("gpt2", scale_attn_by_inverse_layer_idx=True), [1])


@every
def test_going_on_from_recorded_states_changes_nothing(family, task) -> None:
    model = tiny(family, task)
    with recorded(model) as states:
        expected = logits(model)
    assert len(states) == 4
    for index in range(3):
        with after(model, index, states[index + 1]):
            assert torch.equal(logits(model), expected)
        with without(model, [index]):
            skipped = logits(model)
        with after(model, index, states[index]):
            assert torch.equal(logits(model), skipped)
    assert not any("forward" in block.__dict__ for block in model.blocks)
