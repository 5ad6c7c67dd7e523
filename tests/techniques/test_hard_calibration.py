"""Calibration that is hard on a solver: one text, loud or dead inputs, odd widths, no numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attar.core.context import Context
from attar.core.registry import find
from attar.core.step import Step
from attar.data.batches import Batch
from attar.data.example import Dataset, Example
from attar.errors import UserError
from attar.models.model import Model
from attar.ops.divergence import forward_kl
from tiny_models import texts, tiny

ROWS: dict[str, Any] = {"sequences": 8, "length": 32, "batch": 4}
# What each must not lose more answers by than: the same, chosen without looking at any input.
NAIVE: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "quantize/gptq": ({"grid": "int4-g32"}, "quantize/rtn", {"grid": "int4-g32"}),
    "quantize/awq": ({"grid": "int4-g32"}, "quantize/rtn", {"grid": "int4-g32"}),
    "quantize/autoround": (
        {"grid": "int4-g32", "steps": 20},
        "quantize/rtn",
        {"grid": "int4-g32"},
    ),
    "quantize/kv": ({}, "quantize/rtn", {"grid": "int4-g32"}),
    "quantize/smoothquant": ({}, "quantize/rtn", {"grid": "int4-g32"}),
    "quantize/static": ({}, "quantize/rtn", {"grid": "int4-g32"}),
    "quantize/mixed": ({"bits": 4, "measured": 4}, "quantize/rtn", {"grid": "int3-g64"}),
    "prune/wanda": ({"sparsity": 0.5}, "prune/magnitude", {"sparsity": 0.5}),
    "prune/sparsegpt": ({"sparsity": 0.5}, "prune/magnitude", {"sparsity": 0.5}),
    "lowrank/fisher": ({"keep": 0.6}, "lowrank/svd", {"keep": 0.6}),
    "lowrank/whitened": ({"keep": 0.6}, "lowrank/svd", {"keep": 0.6}),
    "lowrank/balanced": ({"keep": 0.6}, "lowrank/svd", {"keep": 0.6}),
    "lowrank/residual": ({"grid": "int4-g32"}, "quantize/rtn", {"grid": "int4-g32"}),
}
# What trains after rounding must not leave more than rounding did.
TRAINED: dict[str, dict[str, Any]] = {
    "heal/blockwise": {"sequences": 8, "length": 32},
    "heal/scales": {"tokens": 2048, "length": 32, "held_out": None},
    "heal/lora": {"tokens": 2048, "length": 32, "held_out": None},
    "quantize/qat": {"grid": "int4-g32", "tokens": 2048, "length": 32, "held_out": None},
}
AGAIN = " ".join(["w7 w3 w90 w12 w55"] * 10)


def loud(model: Model) -> None:
    """Two channels of what every attention and MLP is given are a hundred times the others."""
    for block in model.blocks:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.data[[3, 17]] *= 100


def dead(model: Model) -> None:
    """Two channels of what every attention and MLP is given are always zero."""
    for block in model.blocks:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.data[[3, 17]] = 0


CASES: dict[str, tuple[dict[str, Any], Any, list[str]]] = {
    "one text": ({}, None, [AGAIN] * 12),
    "outliers": ({}, loud, texts(count=12, length=40)),
    "dead inputs": ({}, dead, texts(count=12, length=40)),
    "odd widths": ({"intermediate_size": 50}, None, texts(count=12, length=40)),
}


def ctx_of(model: Model, rows: list[str], teacher: Model | None = None) -> Context:
    data = Dataset("train", [Example(text, None) for text in rows], "", ())
    return Context(model.task, lambda _: data, lambda _: teacher or model)


def made(case: str) -> Model:
    settings, change, _ = CASES[case]
    model = tiny("llama", mlp_bias=False, **settings)
    if change is not None:
        change(model)
    return model


def lost(case: str, *steps: Step) -> tuple[float, Context]:
    """KL of the answers from the original's on what it was calibrated on, in nats a token."""
    model, rows = made(case), CASES[case][2]
    ids = model.tokenizer(rows, return_tensors="pt", truncation=True, max_length=32)["input_ids"]
    batch = Batch(ids, torch.ones_like(ids), ids)
    with torch.no_grad():
        before = model.logits(batch)
    ctx = ctx_of(model, rows, teacher=made(case))
    for step in steps:
        model = step.apply(model, ctx)
    with torch.no_grad():
        return float(forward_kl(model.logits(batch), before)), ctx


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", NAIVE)
def test_no_worse_than_without_looking(case: str, kind: str) -> None:
    settings, naive, naive_settings = NAIVE[kind]
    found, ctx = lost(case, find(kind).model_validate({**ROWS, **settings}))
    plain = find(naive).model_validate(naive_settings)
    assert 0 <= found <= 1.25 * lost(case, plain)[0]  # heuristics promise less
    said = [warning for warning in ctx.warnings if "repeats itself" in warning]
    assert bool(said) == (case == "one text")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", TRAINED)
def test_what_trains_on_it_does_not_lose_more(case: str, kind: str) -> None:
    rounding = find("quantize/rtn").model_validate({"grid": "int4-g32"})
    first = [] if kind.startswith("quantize/") else [rounding]
    last = find(kind).model_validate(TRAINED[kind])
    assert 0 <= lost(case, *first, last)[0] <= lost(case, rounding)[0]


@pytest.mark.parametrize("kind", ["quantize/gptq", "quantize/static", "prune/wanda"])
def test_inputs_that_are_no_numbers_are_refused(kind: str) -> None:
    model = made("outliers")
    model.blocks[1].input_layernorm.weight.data[3] = float("inf")
    step = find(kind).model_validate(ROWS)
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_proj is NaN or infinite"):
        step.apply(model, ctx_of(model, CASES["outliers"][2]))


OUTSIDE_THE_WALK: list[tuple[str, dict[str, Any]]] = [
    ("quantize/kv", {}),
    ("quantize/mixed", {"bits": 4}),
    ("prune/width", {"fraction": 0.5, "multiple": 8}),
    ("prune/width", {"fraction": 0.5, "multiple": 8, "score": "taylor"}),
    ("prune/depth", {"remove": 1}),
    ("prune/depth", {"remove": 1, "score": "influence"}),
    ("prune/depth", {"remove": 1, "score": "taylor"}),
    ("lowrank/fisher", {"keep": 0.6}),
    ("lowrank/balanced", {"keep": 0.6}),
]


@pytest.mark.parametrize(("kind", "settings"), OUTSIDE_THE_WALK)
def test_what_is_no_number_is_refused_where_no_block_is_walked(
    kind: str, settings: dict[str, Any]
) -> None:
    model = made("outliers")
    model.blocks[1].input_layernorm.weight.data[3] = float("inf")
    step = find(kind).model_validate({**ROWS, **settings})
    with pytest.raises(UserError, match="is NaN or infinite"):
        step.apply(model, ctx_of(model, CASES["outliers"][2]))


def test_rows_of_one_class_alone_are_told() -> None:
    model = tiny("bert", "classification")
    one, two = model.labels[:2]
    rows = [Example(text, two if i > 7 else one) for i, text in enumerate(texts(12, 20))]
    for order, said in ((rows, [f"begins with 8 rows of one class ({one})"]), (rows[::-1], [])):
        ctx = Context(
            model.task, lambda _, rows=order: Dataset("train", rows, "", (one, two)), lambda _: None
        )
        find("quantize/gptq").model_validate({**ROWS, "grid": "int8-channel"}).apply(model, ctx)
        model = tiny("bert", "classification")
        assert [all(s in w for s in said) for w in ctx.warnings] == [True] * len(said)
