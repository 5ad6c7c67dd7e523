"""W8A8: near the original on any task, and SmoothQuant's use is seen where inputs are uneven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import attar
from attar.core.context import Context
from attar.core.registry import find
from attar.data.example import Dataset, Example
from attar.layers import DynamicLinear, StaticLinear
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
