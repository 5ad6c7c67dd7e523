"""Folding: found for every family by what its blocks compute, and nothing is changed by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attar.calibrate.folding import Fold, Folds
from attar.calibrate.rows import calibration
from attar.calibrate.walk import BlockView, walk
from attar.core.context import Context
from attar.core.scope import Scope
from attar.data.example import Dataset, Example
from attar.models.model import Model
from attar.techniques.quantize.awq import Awq
from tiny_models import PAIRS, logits, press, texts, tiny

ALL = Scope(patterns=("linears", "norm"))
LLAMA = {
    "q_proj": "input_layernorm",
    "o_proj": "v_proj",
    "gate_proj": "post_attention_layernorm",
    "down_proj": "up_proj",
}
GEMMA = {**LLAMA, "gate_proj": "pre_feedforward_layernorm"}
# By the first linear that is fed. Whatever else there is, something adds to it or bends it.
EXPECTED = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA),
    "gpt2": {"attn.c_attn": "ln_1", "attn.c_proj": "c_attn", "mlp.c_fc": "ln_2"},
    "phi": {"q_proj": "input_layernorm", "self_attn.dense": "v_proj"},
    "phi3": {
        "qkv_proj": "input_layernorm",
        "o_proj": "qkv_proj",
        "gate_up_proj": "post_attention_layernorm",
        "down_proj": "gate_up_proj",
    },
    **{name: {"attention.output.dense": "value"} for name in ("bert", "roberta", "electra")},
    "distilbert": {"out_lin": "v_lin"},
    "modernbert": {"attn.Wo": "Wqkv", "Wi": "mlp_norm", "mlp.Wo": "Wi"},  # block 0 has no norm
}


def found(model: Model, scope: Scope = ALL) -> list[list[Fold]]:
    """The folds of every block."""
    labels = model.labels or (None,)
    rows = [Example(t, labels[n % len(labels)]) for n, t in enumerate(texts(count=20, length=16))]
    data = Dataset("train", rows, "", tuple(model.labels))
    ctx = Context(model.task, lambda _: data, lambda _: model)
    step = Awq(sequences=2, length=16, batch=2)
    folds = Folds(model.select(scope), model.facts())
    every: list[list[Fold]] = []

    def visit(view: BlockView) -> None:
        every.append(folds.of(view, [names for names, _ in view.groups()]))

    walk(model, calibration(step, model, ctx), scope, ctx, visit)
    return every


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_every_family_has_its_folds(family: str, task: Any) -> None:
    model = tiny(family, task)
    pairs = {fold.linears[0]: fold.source for fold in found(model)[0]}
    expected = EXPECTED[family]
    assert len(pairs) == len(expected)
    for linear, source in pairs.items():
        (wanted,) = (name for end, name in expected.items() if linear.endswith("." + end))
        assert source.endswith("." + wanted)


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_nothing_is_changed_by_folding(family: str, task: Any) -> None:
    model = tiny(family, task)
    before = logits(model)
    for fold in (fold for folds in found(model) for fold in folds):
        width = model.module.get_submodule(fold.linears[0]).weight.shape
        drawn = torch.rand(max(width), generator=torch.Generator().manual_seed(0)) + 0.5
        inputs = next(f for f in model.facts() if f.name == fold.linears[0]).shape[1]
        fold.apply(model.module, fold.tied(drawn[:inputs]))
    assert torch.allclose(logits(model), before, rtol=1e-3, atol=1e-4)


def test_looking_for_folds_leaves_the_weights_alone() -> None:
    model = tiny("gemma2")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    assert found(model)
    after = model.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_source_out_of_scope_or_not_float_is_none() -> None:
    assert not any(
        fold.source.endswith("norm")
        for folds in found(tiny("llama"), Scope.linears())
        for fold in folds
    )
    half = Scope(patterns=("*.q_proj", "norm"))  # the norm feeds keys and values too
    assert found(tiny("llama"), half) == [[], [], []]
    model = press(tiny("llama"))
    assert found(model, Scope(patterns=("*.o_proj", "*.v_proj"))) == [[], [], []]
