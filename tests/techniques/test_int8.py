"""W8A8: near the original on any task, and SmoothQuant's use is seen where inputs are uneven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import attar
from attar.calibrate.rows import calibration
from attar.core.context import Context
from attar.core.registry import find
from attar.data.example import Dataset, Example
from attar.errors import ExportError
from attar.export.prepare import refuse
from attar.export.target import find as find_target
from attar.layers import DynamicLinear, RoundedLinear, StaticLinear
from attar.models import Model, save
from tiny_models import PAIRS, logits, texts, tiny

KINDS = {
    "quantize/dynamic": DynamicLinear,
    "quantize/smoothquant": DynamicLinear,
    "quantize/static": StaticLinear,
}


def applied(model: Model, kind: str, **settings: Any) -> Model:
    labels = model.labels or (None,)
    rows = [Example(t, labels[n % len(labels)]) for n, t in enumerate(texts(count=40, length=16))]
    data = Dataset("train", rows, "", tuple(model.labels))
    ctx = Context(model.task, lambda _: data, lambda _: model)
    own = {"sequences": 16, "length": 16, "batch": 4} if kind != "quantize/dynamic" else {}
    return find(kind).model_validate({**own, **settings}).apply(model, ctx)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_near_the_original_and_the_same_after_saving(
    kind: str, family: str, task: Any, tmp_path: Path
) -> None:
    model = tiny(family, task)
    before = logits(model)
    pressed = applied(model, kind)
    assert any(type(part) is KINDS[kind] for part in pressed.module.modules())
    after = logits(pressed)
    assert not torch.equal(after, before)
    assert (after - before).norm() < 0.2 * before.norm()
    save(pressed, tmp_path / "saved")
    assert torch.equal(logits(attar.load(tmp_path / "saved")), after)


def test_a_bias_takes_up_what_the_mean_of_static_outputs_is_off_by() -> None:
    model = tiny("bert", "embedding")
    data = Dataset("train", [Example(text) for text in texts(count=16, length=16)], "")
    ctx = Context(model.task, lambda _: data, lambda _: model, precision="float32")
    step = find("quantize/static").model_validate({"sequences": 16, "length": 64, "batch": 4})
    linear = model.blocks[0].attention.self.query
    arrived: list[torch.Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, inputs: arrived.append(inputs[0]))
    batches = calibration(step, model, ctx)
    with torch.no_grad():
        for batch in batches:
            model.hidden(batch)
        handle.remove()
        real = [b.attention_mask.bool() for b in batches]
        inputs = torch.cat([each[mask] for each, mask in zip(arrived, real, strict=True)])
        step.apply(model, ctx)
        new = model.blocks[0].attention.self.query
        off = new(inputs).double() - linear(inputs).double()
    assert off.abs().mean() > 1e-4
    assert off.mean(0).abs().max() < 0.01 * off.abs().mean()


def uneven() -> Model:
    """A model whose norms put out a few channels that are far larger than the others."""
    model = tiny("llama")
    with torch.no_grad():
        for block in model.blocks:
            for norm, linears in (
                (block.input_layernorm, "qkv"),
                (block.post_attention_layernorm, ("gate", "up")),
            ):
                norm.weight[::8] *= 200
                part = block.self_attn if linears == "qkv" else block.mlp
                for name in linears:
                    getattr(part, f"{name}_proj").weight[:, ::8] /= 200
    return model


def test_smoothing_helps_where_inputs_are_uneven() -> None:
    before = logits(uneven())

    def lost(kind: str) -> float:
        return float((logits(applied(uneven(), kind)) - before).norm())

    assert lost("quantize/smoothquant") < 0.3 * lost("quantize/dynamic")


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama"])
def test_queries_and_keys_are_rounded_where_asked_for(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    before, heads = logits(model), ("q_lin", "k_lin", "query", "key", "q_proj", "k_proj")
    alone = logits(applied(tiny(family), "quantize/static"))
    pressed = applied(model, "quantize/static", scores=True)
    rounded = [n for n, part in pressed.module.named_modules() if isinstance(part, RoundedLinear)]
    assert len(rounded) == 2 * len(pressed.blocks)
    assert all(name.endswith(heads) for name in rounded)
    after = logits(pressed)
    assert 0 < (after - alone).norm() < 0.2 * before.norm()
    for name in rounded:
        part = pressed.module.get_submodule(name)
        codes = part(torch.randn(50, part.width)) / part.output_scale + part.output_zero
        torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
        assert part.output_zero == 128
    save(pressed, tmp_path / "saved")
    assert torch.equal(logits(attar.load(tmp_path / "saved")), after)
    with pytest.raises(ExportError, match="int8-channel with static 8-bit inputs and outputs"):
        refuse(pressed, find_target("hf"), allow_rounding=False)


def test_queries_that_are_in_one_with_keys_are_not_rounded() -> None:
    step = find("quantize/static").model_validate({"scores": True})
    assert "names none that are apart" in next(iter(step.check(tiny("gpt2").facts())))
    assert not list(step.check(tiny("bert").facts()))
