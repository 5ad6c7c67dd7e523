"""Width: what is measured, what goes, and what the plan says of it beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from attar.errors import UserError
from attar.techniques.prune._sizes import weights_in_blocks
from attar.techniques.prune.width import Width
from techniques.cutting import SMALL, context, pressed
from tiny_models import PAIRS, assert_ordinary, logits, tiny

every = pytest.mark.parametrize(("family", "task"), PAIRS)


@every
def test_half_a_model_in_one_step(family, task, tmp_path) -> None:
    model = tiny(family, task)
    before, facts = model.sizes, model.facts()
    small, ctx = pressed(Width(fraction=0.5, multiple=4, **SMALL), model)
    after = small.sizes
    share = weights_in_blocks(facts, after) / weights_in_blocks(facts, before)
    assert share == pytest.approx(0.5, abs=0.04)
    assert ctx.notes["share of the blocks' weights"] == pytest.approx(share, abs=1e-4)
    if family != "phi":  # its 4 heads are as near to 2.8 as 2 are: the neurons do it all
        assert (after.hidden, after.queries) < (before.hidden, before.queries)
    assert logits(small).isfinite().all()
    assert_ordinary(small, tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bert", "modernbert", "phi3"])
@pytest.mark.parametrize("score", ["activation", "taylor"])
def test_what_is_silent_goes(family, score) -> None:
    """Neurons that are never active are the ones to go, and the answers stay."""
    model = tiny(family)
    silent = [5, 17, 40, 63]
    with torch.no_grad():
        for block in model.blocks:
            up = block.get_submodule(model.family.up[-1])
            rows = [index + (64 if model.family.fused_up else 0) for index in silent]
            (up.weight.t() if family == "gpt2" else up.weight)[rows] = 0
            if up.bias is not None:
                up.bias[rows] = 0
    before = logits(model)
    small, ctx = pressed(Width(neurons=60, score=score, **SMALL), model)
    assert ctx.notes["neurons"] == "60 of 64"
    torch.testing.assert_close(logits(small), before, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("score", ["activation", "taylor"])
def test_heads_that_say_little_go(score) -> None:
    model = tiny("llama")
    size = model.sizes.head
    with torch.no_grad():
        for block in model.blocks:
            block.self_attn.v_proj.weight[:size] = 0
    before = logits(model)
    small, ctx = pressed(Width(heads=2, score=score, **SMALL), model)
    assert (ctx.notes["heads"], ctx.notes["kv_heads"]) == ("2 of 4", "1 of 2")
    torch.testing.assert_close(logits(small), before, atol=2e-5, rtol=2e-4)


def test_all_groups_may_stay_with_fewer_queries() -> None:
    small, _ = pressed(Width(heads=2, kv_heads=2, **SMALL), tiny("llama"))
    assert (small.sizes.queries, small.sizes.keys) == (2, 2)
    small, _ = pressed(Width(kv_heads=1, **SMALL), tiny("llama"))
    assert (small.sizes.queries, small.sizes.keys) == (2, 1)


def test_heads_and_hidden_go_together_where_they_must() -> None:
    small, _ = pressed(Width(heads=2, hidden=16, **SMALL), tiny("bert"))
    assert (small.sizes.queries, small.sizes.hidden, small.sizes.head) == (2, 16, 8)


def test_the_same_seed_keeps_the_same() -> None:
    one, two = (pressed(Width(fraction=0.5, multiple=4, **SMALL), tiny("bert"))[0] for _ in "ab")
    assert torch.equal(logits(one), logits(two))


def test_sizes_of_real_models() -> None:
    """SmolLM2-135M and MiniLM-L6, by their facts alone."""
    smol = _scaled(tiny("llama").facts(), heads=(9, 3), head=64, hidden=576, neurons=1536)
    mini = _scaled(tiny("bert").facts(), heads=(12, 12), head=32, hidden=384, neurons=1536)
    shapes = {fact.axes: fact.shape for fact in Width(fraction=0.5).reshape(smol)}
    assert shapes["hidden", "query"] == (384, 384)  # 6 heads of 64, which divide 384
    assert shapes["keys", "hidden"] == (128, 384)
    assert shapes["hidden", "neurons"] == (384, 1184)
    shapes = {fact.axes: fact.shape for fact in Width(fraction=0.5).reshape(mini)}
    assert shapes["hidden", "query"] == (288, 288)  # 9 heads of 32
    assert shapes["hidden", "neurons"] == (288, 960)


def _scaled(facts, heads, head, hidden, neurons):
    long = {
        "hidden": hidden,
        "query": heads[0] * head,
        "keys": heads[1] * head,
        "neurons": neurons,
    }
    return [
        replace(
            fact,
            shape=tuple(long.get(a, n) for a, n in zip(fact.axes, fact.shape, strict=True)),
            heads=fact.heads and replace(fact.heads, queries=heads[0], keys=heads[1]),
        )
        for fact in facts
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give fraction, or one or more of heads, kv_heads, neurons, hidden"),
        ({"fraction": 0.5, "heads": 2}, "either fraction or sizes, got fraction and heads"),
        ({"fraction": 1.0}, "less than 1"),
        ({"fraction": 0}, "greater than 0"),
    ],
)
def test_width_settings_that_make_no_sense(settings, words) -> None:
    with pytest.raises(ValidationError, match=words):
        Width(**settings)


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        (
            "llama",
            {"heads": 3},
            "3 heads cannot be shared out evenly: there are 4 heads in 2 groups",
        ),
        ("llama", {"heads": 3}, "Near it, 1, 2, 4 can"),
        ("llama", {"heads": 1, "kv_heads": 2}, "among kv_heads: 2"),
        ("llama", {"heads": 5}, "heads: 5 is more than the 4 that there are"),
        ("llama", {"neurons": 65}, "neurons: 65 is more than the 64"),
        ("llama", {"hidden": 30}, "Ask for hidden: 32"),
        ("llama", {"neurons": 64}, "nothing would become narrower"),
        ("llama", {"fraction": 0.99}, "nothing would become narrower"),
        ("bert", {"heads": 2}, "Ask for both together: heads: 2 and hidden: 16"),
        ("gpt2", {"hidden": 16}, "the heads make up the hidden size: 4 heads of 8 are 32"),
        ("electra", {"heads": 2, "hidden": 16}, "Ask for another hidden size"),
        ("llama", {"neurons": 32, "scope": "mlp"}, "its scope cannot be a part of them"),
    ],
)
def test_width_that_cannot_be(family, settings, words) -> None:
    model, step = tiny(family), Width(**settings)
    (problem,) = step.check(model.facts())
    assert words in problem
    with pytest.raises(UserError, match=r"prune/width: "):
        step.apply(model, context(model))
