"""Pruning: what is measured, what goes, and what the plan says of it beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from attar.calibrate.rows import calibration
from attar.calibrate.sensitivity import answers
from attar.core.context import Context
from attar.data.example import Dataset, Example
from attar.errors import UserError
from attar.models.blocks import without
from attar.ops.divergence import forward_kl
from attar.techniques.prune._sizes import weights_in_blocks
from attar.techniques.prune.depth import Depth
from attar.techniques.prune.width import Width
from tiny_models import PAIRS, assert_ordinary, logits, texts, tiny

every = pytest.mark.parametrize(("family", "task"), PAIRS)
SMALL = {"sequences": 4, "length": 16, "batch": 2}


def context(model) -> Context:
    return Context(task=model.task, data=lambda name: dataset(model), model=lambda name: None)


def dataset(model) -> Dataset:
    """Random texts, labelled in turn."""
    labels = model.labels
    examples = [
        Example(text, labels[index % len(labels)] if labels else None)
        for index, text in enumerate(texts(count=16, length=20))
    ]
    return Dataset("train", examples, "random", labels)


def pressed(step, model):
    """The step's result and its context; its facts are those that the plan foresaw."""
    facts = model.facts()
    assert list(step.check(facts)) == []
    ctx = context(model)
    result = step.apply(model, ctx)
    assert list(step.reshape(facts)) == result.facts()
    return result, ctx


# -------------------------------------------------------------------------------------- depth


@every
@pytest.mark.parametrize("score", ["divergence", "influence"])
def test_depth_on_every_family(family, task, score, tmp_path) -> None:
    model, ctx = pressed(Depth(remove=1, score=score, **SMALL), tiny(family, task))
    (gone,) = ctx.notes["removed"]
    scores = dict(ctx.curves["block influence"])
    protected = {0} if family == "modernbert" else set()
    assert set(scores) == {0, 1, 2} - protected
    assert gone == min(scores, key=lambda index: scores[index])
    expected = tiny(family, task)
    with without(expected, [gone]):
        assert torch.equal(logits(model), logits(expected))
    assert_ordinary(model, tmp_path)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_divergence_is_that_of_the_whole_model_without_the_block(family) -> None:
    model = tiny(family)
    step, ctx = Depth(remove=2, **SMALL), context(model)
    batches = calibration(step, model, ctx)
    original = [answers(model, batch, ctx) for batch in batches]

    def divergence(gone: list[int]) -> float:
        with without(model, gone):
            parts = [
                forward_kl(answers(model, batch, ctx), own)
                for batch, own in zip(batches, original, strict=True)
            ]
        return float(sum(parts)) / len(parts)

    alone = {index: divergence([index]) for index in range(3)}
    first = min(alone, key=lambda index: alone[index])
    second = min({0, 1, 2} - {first}, key=lambda index: divergence([first, index]))
    pairs = divergence([first, second])
    step.apply(model, ctx)
    assert dict(ctx.curves["block influence"]) == pytest.approx(alone)
    assert ctx.notes["removed"] == sorted([first, second])
    assert dict(ctx.curves["divergence"]) == pytest.approx({1: alone[first], 2: pairs})


def test_a_block_that_does_nothing_goes_first() -> None:
    for score in ("divergence", "influence"):
        model = tiny("llama")
        with torch.no_grad():
            for path in (model.family.out, model.family.down):
                linear = model.blocks[1].get_submodule(path)
                linear.weight.zero_()
                if linear.bias is not None:
                    linear.bias.zero_()
        before = logits(model)
        small, ctx = pressed(Depth(keep=2, score=score, **SMALL), model)
        assert ctx.notes["removed"] == [1]
        assert torch.equal(logits(small), before)


@pytest.mark.parametrize(
    ("settings", "left"),
    [({"remove": 2}, 1), ({"keep": 2}, 2), ({"fraction": 0.5}, 2), ({"fraction": 0.01}, 1)],
)
def test_how_many_blocks_stay(settings, left) -> None:
    model, ctx = pressed(Depth(**settings, **SMALL), tiny("llama"))
    assert len(model.blocks) == ctx.notes["blocks"] == left


def test_blocks_given_need_no_data() -> None:
    step = Depth(blocks=(0, 2))
    assert list(step.references("data")) == []
    assert list(Depth(remove=1).references("data")) == [("data", "train")]
    model = tiny("llama")
    kept = model.blocks[1]
    ctx = Context(task="causal-lm", data=None, model=None)  # type: ignore[arg-type]
    assert step.apply(model, ctx).blocks[0] is kept


def test_only_blocks_in_scope_go() -> None:
    _, ctx = pressed(Depth(remove=1, scope="blocks[2:]", **SMALL), tiny("llama"))
    assert ctx.notes["removed"] == [2]
    assert len(ctx.curves["block influence"]) == 1


def test_the_same_seed_removes_the_same() -> None:
    notes = [pressed(Depth(remove=1, **SMALL), tiny("bert"))[1].notes for _ in range(2)]
    assert notes[0] == notes[1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one of remove, keep, fraction, blocks; none is there"),
        ({"remove": 1, "keep": 2}, "got remove and keep"),
        ({"remove": 0}, "greater than or equal to 1"),
        ({"fraction": 1.5}, "less than or equal to 1"),
        ({"blocks": ()}, "at least 1 item"),
    ],
)
def test_depth_settings_that_make_no_sense(settings, words) -> None:
    with pytest.raises(ValidationError, match=words):
        Depth(**settings)


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("llama", {"remove": 3}, "would remove 3 of the 3 blocks that there are"),
        ("llama", {"remove": 9}, "would remove 9 of the 3 blocks"),
        ("llama", {"keep": 3}, "would keep all 3 blocks"),
        ("llama", {"fraction": 1.0}, "would keep all 3 blocks"),
        ("llama", {"blocks": (1, 3)}, "no block 3: the model has blocks 0 to 2"),
        ("llama", {"blocks": (0, 1, 2)}, "at least one must stay"),
        ("modernbert", {"blocks": (0,)}, "block 0 is built unlike the others"),
        ("llama", {"remove": 2, "scope": "blocks[1]"}, "only 1 of its scope can go"),
    ],
)
def test_depth_that_cannot_be(family, settings, words) -> None:
    model, step = tiny(family), Depth(**settings)
    (problem,) = step.check(model.facts())
    assert words in problem
    with pytest.raises(UserError, match=r"prune/depth: "):
        step.apply(model, context(model))


# -------------------------------------------------------------------------------------- width


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
