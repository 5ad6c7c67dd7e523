"""Folding: found for every family by what its blocks compute, and nothing is changed by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attar.calibrate.folding import Fold, Folds
from attar.calibrate.rows import calibration
from attar.calibrate.view import BlockView
from attar.calibrate.walk import walk
from attar.core import registry
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


def test_where_the_scope_differs_from_block_to_block() -> None:
    model = tiny("llama")
    half = Scope(patterns=("linears", "norm & blocks[0]"))
    sources = [{fold.source.rpartition(".")[2] for fold in folds} for folds in found(model, half)]
    linears = {"v_proj", "up_proj"}
    norms = {"input_layernorm", "post_attention_layernorm"}
    assert sources == [linears | norms, linears, linears]
    mixed = Scope(patterns=("*.0.self_attn.[vo]_proj", "*.1.mlp.up_proj", "*.1.mlp.down_proj"))
    pairs = [[(f.linears[0], f.source) for f in folds] for folds in found(model, mixed)]
    prefix = "model.layers"
    assert pairs == [
        [(f"{prefix}.0.self_attn.o_proj", f"{prefix}.0.self_attn.v_proj")],
        [(f"{prefix}.1.mlp.down_proj", f"{prefix}.1.mlp.up_proj")],
        [],
    ]


def test_a_token_that_is_far_larger_hides_nothing() -> None:
    model = tiny("gpt2")
    with torch.no_grad():
        model.base.wpe.weight[0, 3] = 3000.0
    sources = {fold.source.rpartition(".")[2] for folds in found(model) for fold in folds}
    assert sources == {"ln_1", "c_attn", "ln_2"}  # not c_fc: there is a GELU behind it


def test_factors_of_a_linear_have_no_fold() -> None:
    ctx = Context("causal-lm", lambda _: None, lambda _: None)
    thin = registry.find("lowrank/svd").model_validate({"keep": 0.5}).apply(tiny("llama"), ctx)
    assert found(thin) == [[], [], []]


def test_looking_for_folds_leaves_the_weights_alone() -> None:
    model = tiny("gemma2")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    assert any(found(model))
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
