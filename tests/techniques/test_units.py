"""Heads and neurons out of blocks: what goes, and what is made up for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attar.calibrate.rows import calibration
from attar.core.context import Context
from attar.core.registry import find
from attar.core.scope import Scope
from attar.core.traits import UNEVEN
from attar.data.example import Dataset, Example
from attar.errors import UserError
from attar.models import Model
from attar.models.model import weight_of
from attar.models.traits import traits_of
from attar.techniques.prune.heads import Heads
from attar.techniques.prune.neurons import Neurons
from attar.train.losses import Objective
from techniques.cutting import SMALL, applied, context, reloaded, uneven
from tiny_models import PAIRS, assert_ordinary, logits, shuffled, texts, tiny

every = pytest.mark.parametrize(("family", "task"), PAIRS)
OWN = [pair for pair in PAIRS if pair[0] not in ("gpt2", "phi3")]  # a number of heads each
FREE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
SCORES = ("activation", "taylor", "similarity")


# ------------------------------------------------------------------------------------ surgery


@every
def test_uneven_blocks_compute_what_the_kept_units_do(family, task, tmp_path) -> None:
    model, whole = uneven(family, task), tiny(family, task)
    size, groups = whole.sizes.head, whole.sizes.keys
    for block, kept in enumerate((40, 64, 24)):
        down = weight_of(whole.blocks[block].get_submodule(whole.family.down)).detach()
        down[:, shuffled(64, block)[kept:]] = 0
    if family not in ("gpt2", "phi3"):
        out = weight_of(whole.blocks[0].get_submodule(whole.family.out)).detach()
        out[:, : (groups - 1) * (whole.sizes.queries // groups) * size] = 0
    torch.testing.assert_close(logits(model), logits(whole), atol=2e-5, rtol=2e-4)
    reloaded(model, tmp_path)


@every
@pytest.mark.parametrize("share", ["even", "uneven"])
def test_neurons_on_every_family(family, task, share, tmp_path) -> None:
    model = tiny(family, task)
    count = model.parameters_count()
    small = applied(model, "prune/neurons", fraction=0.5, multiple=4, share=share)
    ends = [fact.shape[1] for fact in small.facts() if fact.axes == ("hidden", "neurons")]
    assert sum(ends) == 96
    assert small.parameters_count() < count
    if share == "even":
        assert set(ends) == {32}
        assert_ordinary(small, tmp_path)
    else:
        reloaded(small, tmp_path)


@pytest.mark.parametrize(("family", "task"), OWN)
def test_heads_of_two_blocks_on_every_family_that_can(family, task, tmp_path) -> None:
    model = tiny(family, task)
    groups = model.sizes.keys
    small = applied(model, "prune/heads", fraction=0.5, scope=["attention & blocks[1:]"])
    found = [f.heads.keys for f in small.facts() if f.axes == ("hidden", "query") and f.heads]
    assert found == [groups, groups // 2, groups // 2]
    again = reloaded(small, tmp_path)
    traits = traits_of(again.module, again.facts())
    assert {name for name in traits if UNEVEN in traits[name]} == set(
        again.linears(Scope.of("attention & blocks[1:]"))
    )


@pytest.mark.parametrize("family", FREE)
def test_heads_of_all_blocks_leave_an_ordinary_model(family, tmp_path) -> None:
    small = applied(tiny(family), "prune/heads", fraction=0.5)
    assert (small.sizes.queries, small.sizes.keys) == (2, 1)
    assert_ordinary(small, tmp_path)


@pytest.mark.parametrize(
    ("family", "settings"),
    [("gpt2", {}), ("phi3", {"share": "uneven"}), ("phi3", {"scope": ["attention & blocks[0]"]})],
)
def test_heads_that_cannot_differ(family, settings) -> None:
    model, step = tiny(family), Heads(fraction=0.5, **settings)
    (problem,) = step.check(model.facts())
    assert "this architecture splits its attention where the config says" in problem
    with pytest.raises(UserError, match=r"prune/heads: "):
        step.apply(model, context(model))


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Heads(fraction=0.9), "it would keep all 2 heads of a block"),
        (Heads(scope="mlp"), "its scope holds no attention"),
        (Neurons(scope="*.down_proj"), "holds model.layers.0.mlp.down_proj and not"),
        (Neurons(fraction=0.9), "it would keep all 64 neurons of a block"),
        (Neurons(fraction=0.9, share="uneven", multiple=64), "or lower `multiple`"),
    ],
)
def test_what_cannot_be(step, words) -> None:
    (problem,) = step.check(tiny("llama").facts())
    assert words in problem


def test_shares_by_what_does_not_compare_blocks_are_warned_of() -> None:
    for score, warned in zip(SCORES, (True, False, True), strict=True):
        model = tiny("llama")
        ctx = context(model)
        Neurons(fraction=0.5, multiple=4, share="uneven", score=score, **SMALL).apply(model, ctx)
        assert any("does not weigh blocks by the loss" in text for text in ctx.warnings) == warned


def test_bfloat16_stays(tmp_path) -> None:
    model = tiny("llama", dtype=torch.bfloat16)
    small = applied(model, "prune/neurons", fraction=0.5, multiple=4, share="uneven")
    again = reloaded(small, tmp_path)
    assert {p.dtype for p in again.module.parameters()} == {torch.bfloat16}


def test_a_second_step_evens_out_what_a_first_left(tmp_path) -> None:
    model = tiny("llama")
    halves = {"fraction": 0.5, "multiple": 4}
    for scope in ("mlp & blocks[0]", "mlp & blocks[1:]"):
        model = applied(model, "prune/neurons", scope=[scope], **halves)
    assert model.config.intermediate_size == 32
    assert_ordinary(model, tmp_path)


# ----------------------------------------------------------------------------------- choosing


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "modernbert"])
def test_what_is_silent_goes_from_wherever_it_is(family, score) -> None:
    model = tiny(family)
    for block, count in ((0, 4), (2, 24)):
        down = weight_of(model.blocks[block].get_submodule(model.family.down)).detach()
        up = model.blocks[block].get_submodule(model.family.up[-1])
        rows = torch.tensor(shuffled(64, block)[:count])
        down[:, rows] = 0
        rows = rows + (64 if model.family.fused_up else 0)
        weight_of(up).detach()[rows] = 0
        if up.bias is not None:
            up.bias.detach()[rows] = 0
    before = logits(model)
    settings = {"fraction": 164 / 192, "multiple": 4, "share": "uneven", "refit": False}
    small = applied(model, "prune/neurons", score=score, **settings)
    ends = [fact.shape[1] for fact in small.facts() if fact.axes == ("hidden", "neurons")]
    assert ends == [60, 64, 40]
    torch.testing.assert_close(logits(small), before, atol=2e-5, rtol=2e-4)


def test_twins_go_and_their_weights_stay() -> None:
    model = tiny("llama")
    for block in model.blocks:
        for name in ("gate_proj", "up_proj"):
            linear = block.mlp.get_submodule(name)
            for own in (linear.weight.detach(), linear.bias.detach()):
                own[:16] = own[16:32]
    before = logits(model)
    settings = {"fraction": 0.75, "multiple": 1, "score": "similarity", "refit": False}
    small = applied(model, "prune/neurons", **settings)
    torch.testing.assert_close(logits(small), before, atol=1e-3, rtol=1e-3)


def test_heads_that_say_the_same_go() -> None:
    model = tiny("bert")
    for block in model.blocks:
        attention = block.attention.self
        for linear in (attention.query, attention.key, attention.value):
            for own in (linear.weight.detach(), linear.bias.detach()):
                own[8:16] = own[24:32]
    before = logits(model)
    small = applied(model, "prune/heads", score="similarity", fraction=0.75, refit=False)
    torch.testing.assert_close(logits(small), before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("family", "task"), [("llama", None), ("bert", "classification")])
def test_taylor_is_the_slope_of_the_loss_by_a_gate(family, task) -> None:
    model = tiny(family, task)
    step = Neurons(fraction=0.5, score="taylor", share="uneven", multiple=1, refit=False, **SMALL)
    ctx = context(model)
    batches = calibration(step, model, ctx)
    ends = step._ends(model.facts())
    found = step._scores(model, ends, batches, ctx)
    expected = [torch.zeros(64) for _ in ends]
    rows = [row for batch in batches for row in _rows(batch)]
    for batch in rows:
        for own, slope in zip(expected, _slopes(model, batch), strict=True):
            own += slope.abs() / len(rows)
    for own, wanted in zip(found, expected, strict=True):
        # The mean over a batch counts each sequence by its share
        ratio = own / wanted
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), atol=1e-3, rtol=1e-3)
    assert all(p.grad is None for p in model.module.parameters())


@pytest.mark.parametrize(("family", "task"), [("llama", None), ("bert", "classification")])
def test_taylor_counts_sequences_alike_however_they_are_batched(family, task) -> None:
    found = []
    for batch in (1, 3):
        model = tiny(family, task)
        step = Neurons(score="taylor", **{**SMALL, "batch": batch})
        batches = calibration(step, model, context(model))
        found.append(step._scores(model, step._ends(model.facts()), batches, context(model)))
    for own, wanted in zip(*found, strict=True):
        torch.testing.assert_close(own, wanted, atol=0, rtol=1e-3)


def test_taylor_needs_a_label_among_what_it_measures_on() -> None:
    model = tiny("bert", "classification")
    labels = [None] * 4 + [model.labels[0]] * 4
    rows = [Example(*row) for row in zip(texts(8, 16), labels, strict=True)]
    data = Dataset("train", rows, "", tuple(model.labels))
    ctx = Context(model.task, lambda _: data, lambda _: None)
    step = Neurons(score="taylor", fraction=0.5, multiple=4, **SMALL)
    with pytest.raises(UserError, match="none of the 4 sequences measured on has a label"):
        step.apply(model, ctx)


def _rows(batch: Any) -> list[Any]:
    return [
        replace(
            batch,
            input_ids=batch.input_ids[row : row + 1],
            attention_mask=batch.attention_mask[row : row + 1],
            labels=batch.labels[row : row + 1],
        )
        for row in range(len(batch.input_ids))
    ]


def _slopes(model: Model, batch: Any) -> list[Tensor]:
    """The loss's gradient by a factor of one on every neuron."""
    gates = [torch.ones(64, requires_grad=True) for _ in model.blocks]
    handles = [
        block.get_submodule(model.family.down).register_forward_pre_hook(
            lambda _, given, gate=gate: (given[0] * gate,)
        )
        for block, gate in zip(model.blocks, gates, strict=True)
    ]
    try:
        return list(torch.autograd.grad(Objective(model)(batch, 0.0).value, gates))
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("kind", "family"), [("prune/neurons", "llama"), ("prune/heads", "bert")])
def test_refitting_loses_less_than_handing_on(kind, family) -> None:
    lost = []
    for refit in (True, False):
        step = find(kind)(fraction=0.5, score="similarity", refit=refit, sequences=32, length=16)
        model = tiny(family)
        ctx = context(model)
        step.apply(model, ctx)
        lost.append(dict(ctx.curves["block error"])[0])
    assert lost[0] < lost[1]


def test_masked_zeros_stay() -> None:
    model = applied(tiny("llama"), "prune/wanda", scope=["mlp"])
    small = applied(model, "prune/neurons", fraction=0.5, multiple=4, share="uneven")
    for linear in small.linears(Scope.of("mlp")).values():
        assert float((weight_of(linear) == 0).float().mean()) > 0.2


UNEVEN_NEURONS = Neurons(fraction=0.5, multiple=4, score="similarity", share="uneven", **SMALL)
WALKED = [("llama", UNEVEN_NEURONS), ("phi3", Heads(fraction=0.5, **SMALL))]


@pytest.mark.parametrize(("family", "step"), WALKED)
def test_a_walk_that_was_killed_goes_on(family, step, tmp_path) -> None:
    first = step.apply(tiny(family), context(tiny(family), tmp_path))
    assert {path.name for path in tmp_path.rglob("*.safetensors")}
    last = max((tmp_path / "blocks").glob("*.safetensors"))
    last.unlink()
    second = step.apply(tiny(family), context(tiny(family), tmp_path))
    plain = step.apply(tiny(family), context(tiny(family)))
    assert torch.equal(logits(first), logits(second))
    assert torch.equal(logits(first), logits(plain))


@pytest.mark.parametrize(("family", "step"), WALKED)
def test_states_on_disk_make_no_difference(family, step, tmp_path) -> None:
    ctx = replace(context(tiny(family), tmp_path), memory=1.0)
    plain = step.apply(tiny(family), context(tiny(family)))
    assert torch.equal(logits(step.apply(tiny(family), ctx)), logits(plain))
