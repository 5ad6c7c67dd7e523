"""Every family: its parts are found, and its head reads its hidden states."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from attar.core.scope import Scope
from attar.errors import UnknownFamily
from attar.models.axes import sizes_of_facts, widths
from attar.models.families import FAMILIES, family_of
from attar.models.model import set_weight, shape_of, weight_of
from tiny_media import MODELS
from tiny_models import DECODERS, ENCODERS, PAIRS, batch, logits, tiny

every = pytest.mark.parametrize(("family", "task"), PAIRS)


def test_every_family_of_the_table_is_tried() -> None:
    assert sorted(FAMILIES) == sorted({*DECODERS, *ENCODERS, *(name for name, _ in MODELS)})


@every
def test_head_of_hidden_is_the_modules_own_answer(family, task) -> None:
    model = tiny(family, task)
    given = batch(model)
    with torch.no_grad():
        own = model.module(input_ids=given.input_ids, attention_mask=given.attention_mask).logits
        assert torch.equal(model.logits(given), own)
        if task != "classification":
            assert torch.equal(model.head(model.hidden(given)), own)
    assert own.std() > 0.1  # equal, and not because everything is zero


@every
def test_blocks_and_linears_are_found(family, task) -> None:
    model = tiny(family, task)
    assert len(model.blocks) == 3
    assert model.module.get_submodule(model.blocks_name) is model.blocks
    found = model.linears(Scope.linears())
    inside = [
        name
        for name, module in model.module.named_modules()
        if name.startswith(model.blocks_name + ".") and isinstance(module, nn.Linear | Conv1D)
    ]
    assert list(found) == inside
    attention, mlp = (model.linears(Scope.of(word)) for word in ("attention", "mlp"))
    assert sorted([*attention, *mlp]) == sorted(inside)
    assert len(attention) == 3 * len(model.family.attention)
    assert len(mlp) == 3 * len(model.family.mlp)


@every
def test_facts_say_what_there_is(family, task) -> None:
    model = tiny(family, task)
    facts = {fact.name: fact for fact in model.facts()}
    roles = [fact.role for fact in facts.values()]
    assert roles.count("embedding") == 1
    assert roles.count("head") == (task != "classification")
    weights = {name.rpartition(".")[0] for name, _ in model.module.named_parameters()}
    tied = {"cls.predictions", "lm_head"}  # their bias is the decoder's
    assert weights - facts.keys() <= tied
    for fact in facts.values():
        module = model.module.get_submodule(fact.name)
        assert fact.shape == shape_of(module)
        assert len(fact.axes) == len(fact.shape)
        assert fact.linear == isinstance(module, nn.Linear | Conv1D)
        assert (fact.heads is not None) == (fact.role == "attention")


@every
def test_axes_agree_with_the_sizes(family, task) -> None:
    model = tiny(family, task, intermediate_size=56) if "bert" in family else tiny(family, task)
    assert sizes_of_facts(model.facts()) == model.sizes
    long = widths(model.sizes)
    named = 0
    for fact in model.facts():
        for size, axis in zip(fact.shape, fact.axes, strict=True):
            assert not axis or size == long[axis], fact
            named += bool(axis)
    assert named > 20


def test_an_unknown_family_is_refused_with_what_to_add() -> None:
    with pytest.raises(UnknownFamily, match=r"'mamba' has no entry .*gpt2.*families\.py") as caught:
        family_of("mamba")
    assert caught.value.exit_code == 2


def test_conv1d_is_seen_as_outputs_by_inputs() -> None:
    model = tiny("gpt2")
    linear = model.module.get_submodule("transformer.h.0.mlp.c_fc")
    assert isinstance(linear, Conv1D)
    weight = weight_of(linear)
    assert weight.shape == shape_of(linear) == (64, 32)
    inputs = torch.randn(5, 32)
    torch.testing.assert_close(linear(inputs), inputs @ weight.t() + linear.bias)
    before = logits(model)
    new = torch.randn(64, 32)
    set_weight(linear, new)
    assert torch.equal(weight_of(linear), new)
    assert not torch.equal(logits(model), before)


def test_softcap_is_applied() -> None:
    capped, free = tiny("gemma2"), tiny("gemma2", final_logit_softcapping=None)
    given = batch(capped)
    with torch.no_grad():
        assert torch.equal(capped.logits(given), torch.tanh(free.logits(given) / 30.0) * 30.0)
