"""AWQ end to end: where inputs are uneven it loses less than rounding without it."""

from __future__ import annotations

import torch

from attar.core.context import Context
from attar.core.registry import find
from attar.data.example import Dataset, Example
from attar.models import Model
from techniques.test_int8 import uneven
from tiny_models import logits, texts, tiny


def applied(model: Model, kind: str, **settings: object) -> Model:
    data = Dataset("train", [Example(text, None) for text in texts(count=40, length=16)], "", ())
    ctx = Context(model.task, lambda _: data, lambda _: model)
    return find(kind).model_validate(settings).apply(model, ctx)


def test_less_is_lost_where_inputs_are_uneven() -> None:
    before = logits(uneven())
    data = {"sequences": 16, "length": 16, "batch": 4}

    def lost(model: Model) -> float:
        return float((logits(model) - before).norm())

    plain = lost(applied(uneven(), "quantize/rtn", grid="int4-g32"))
    assert lost(applied(uneven(), "quantize/awq", grid="int4-g32", **data)) < 0.8 * plain


def test_after_a_factorization_and_on_pruned_weights() -> None:
    data = {"sequences": 4, "length": 16, "batch": 2, "grid": "int8-channel"}
    thin = applied(tiny("llama"), "lowrank/svd", keep=0.9)
    before = logits(thin)
    assert (logits(applied(thin, "quantize/awq", **data)) - before).norm() < 0.1 * before.norm()
    pruned = applied(tiny("llama"), "prune/magnitude", sparsity=0.5)
    name = "model.layers.1.self_attn.q_proj"
    zeros = pruned.module.get_submodule(name).weight == 0
    rounded = applied(pruned, "quantize/awq", **data).module.get_submodule(name).weight
    assert torch.equal(rounded == 0, zeros | (rounded == 0))
    assert (rounded == 0)[zeros].all()
