"""Depth: what is measured, what goes, and what the plan says of it beforehand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from attar.calibrate.rows import calibration
from attar.calibrate.sensitivity import answers
from attar.core.context import Context
from attar.core.registry import find
from attar.errors import UserError
from attar.models.blocks import first_of, replaced, without
from attar.ops.divergence import forward_kl
from attar.techniques.prune._scores import block_sensitivities
from attar.techniques.prune.depth import Depth
from attar.train.losses import Objective
from techniques.cutting import SMALL, context, pressed
from tiny_models import PAIRS, assert_ordinary, logits, tiny

every = pytest.mark.parametrize(("family", "task"), PAIRS)


@every
@pytest.mark.parametrize("score", ["divergence", "influence", "taylor"])
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


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_taylor_is_the_slope_of_the_loss_by_what_a_block_adds(family, task) -> None:
    """Held against the difference that a thousandth less of it makes."""
    model = tiny(family, task, hidden_dropout_prob=0.0) if family == "bert" else tiny(family, task)
    model.module.double()
    step, ctx = Depth(remove=1, **{**SMALL, "sequences": 1}), context(model)
    batches, small = calibration(step, model, ctx), 1e-3
    found = block_sensitivities(model, batches, ctx)

    def loss(index: int, share: float) -> float:
        own = model.blocks[index].forward

        def less(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            return hidden + share * (first_of(own(hidden, *args, **kwargs)) - hidden)

        with replaced(model, {index: less}), torch.no_grad():
            return sum(float(Objective(model)(batch, 0.0).value) for batch in batches)

    for index in range(len(model.blocks)):
        slope = (loss(index, 1 + small) - loss(index, 1 - small)) / (2 * small)
        assert float(found[index]) == pytest.approx(abs(slope), rel=1e-2, abs=1e-7)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_divergence_is_that_of_the_whole_model_without_the_block(family) -> None:
    model = tiny(family)
    step, ctx = Depth(remove=2, **SMALL), context(model)
    batches = calibration(step, model, ctx)
    original = [answers(model, batch, ctx) for batch in batches]

    def divergence(gone: list[int]) -> float:
        with without(model, gone):
            parts = [
                float(forward_kl(answers(model, batch, ctx), own)) * len(own)
                for batch, own in zip(batches, original, strict=True)
            ]
        return sum(parts) / sum(len(own) for own in original)

    alone = {index: divergence([index]) for index in range(3)}
    first = min(alone, key=lambda index: alone[index])
    second = min({0, 1, 2} - {first}, key=lambda index: divergence([first, index]))
    pairs = divergence([first, second])
    step.apply(model, ctx)
    assert dict(ctx.curves["block influence"]) == pytest.approx(alone)
    assert ctx.notes["removed"] == sorted([first, second])
    assert dict(ctx.curves["divergence by blocks removed"]) == pytest.approx(
        {1: alone[first], 2: pairs}
    )


def test_a_block_that_does_nothing_goes_first() -> None:
    for score in ("divergence", "influence", "taylor"):
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


def test_a_first_block_in_factors_may_go() -> None:
    split = find("lowrank/svd").model_validate({"keep": 0.5, "scope": "linears & blocks[0]"})
    assert list(Depth(blocks=(0,)).check(split.reshape(tiny("llama").facts()))) == []


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
