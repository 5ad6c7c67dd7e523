"""Heads and neurons out of blocks: what goes, what is made up for, and what works afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attar
from attar.calibrate.rows import calibration
from attar.core.context import Context
from attar.core.recipe import Recipe
from attar.core.registry import find
from attar.core.scope import Scope
from attar.core.traits import FLOAT, LOWRANK, QUANTIZED, UNEVEN
from attar.data.example import Dataset, Example
from attar.engine.plan import fold, traits_of
from attar.errors import UserError
from attar.layers import Resized
from attar.models import Model, load, save
from attar.models.load import config_of, skeleton
from attar.models.masks import mark
from attar.models.model import set_weight, weight_of
from attar.models.source import Files
from attar.models.uneven import keep_groups, keep_neurons
from attar.techniques.prune.heads import Heads
from attar.techniques.prune.neurons import Neurons
from attar.train.losses import Objective
from tiny_models import PAIRS, assert_ordinary, logits, shuffled, texts, tiny

every = pytest.mark.parametrize(("family", "task"), PAIRS)
OWN = [pair for pair in PAIRS if pair[0] not in ("gpt2", "phi3")]  # a number of heads each
FREE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
SMALL: dict[str, Any] = {"sequences": 4, "length": 16, "batch": 2}
SCORES = ("activation", "taylor", "similarity")


def context(model: Model, scratch: Path | None = None) -> Context:
    labels = model.labels or (None,)
    rows = [Example(t, labels[n % len(labels)]) for n, t in enumerate(texts(count=40, length=16))]
    data = Dataset("train", rows, "", tuple(model.labels))
    return Context(
        model.task, lambda _: data, lambda _: tiny(model.config.model_type), scratch=scratch
    )


def applied(model: Model, kind: str, **settings: Any) -> Model:
    """The model after one step, of little data where it reads any."""
    cls = find(kind)
    kept = {name: value for name, value in SMALL.items() if name in cls.model_fields}
    step = cls.model_validate({**kept, **settings})
    assert list(step.check(model.facts())) == []
    return step.apply(model, context(model))


def uneven(family: str = "llama", task: Any = None) -> Model:
    """A model whose blocks keep 40, 64 and 24 neurons, and two heads, all, and one's group."""
    model = tiny(family, task)
    for block, kept in enumerate((40, 64, 24)):
        keep_neurons(model, block, shuffled(64, block)[:kept])
    if family not in ("gpt2", "phi3"):
        keep_groups(model, 0, [model.sizes.keys - 1])
    return model


def reloaded(model: Model, folder: Path) -> Model:
    """The model from its files, bit-equal, as its headers say."""
    save(model, folder)
    again = attar.load(folder)
    assert torch.equal(logits(again), logits(model))
    empty = skeleton(config_of(Files(folder)), model.task)
    assert empty.facts() == again.facts() == model.facts()
    assert empty.parameters_count() == again.parameters_count() == model.parameters_count()
    return again


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


def test_a_walk_that_was_killed_goes_on(tmp_path) -> None:
    step = Neurons(fraction=0.5, multiple=4, score="similarity", share="uneven", **SMALL)
    first = step.apply(tiny("llama"), context(tiny("llama"), tmp_path))
    assert {path.name for path in tmp_path.rglob("*.safetensors")}
    last = max((tmp_path / "blocks").glob("*.safetensors"))
    last.unlink()
    second = step.apply(tiny("llama"), context(tiny("llama"), tmp_path))
    plain = step.apply(tiny("llama"), context(tiny("llama")))
    assert torch.equal(logits(first), logits(second))
    assert torch.equal(logits(first), logits(plain))


# ---------------------------------------------------------------------------------- afterwards


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("quantize/rtn", {"grid": "int8-g32"}),
        ("quantize/gptq", {"grid": "int4-g32"}),
        ("quantize/awq", {"grid": "int4-g32"}),
        ("quantize/smoothquant", {}),
        ("quantize/mixed", {"bits": 4, "measured": 2}),
        ("lowrank/svd", {"keep": 0.5}),
        ("lowrank/whitened", {"keep": 0.5}),
        ("prune/wanda", {}),
        ("prune/sparsegpt", {}),
        ("prune/depth", {"remove": 1}),
        ("heal/blockwise", {"epochs": 1, "batch": 1}),
        ("distill/logits", {"steps": 2}),
        ("prune/neurons", {"fraction": 0.5, "multiple": 4}),
        ("prune/heads", {"fraction": 0.5, "scope": ["attention & blocks[2]"]}),
    ],
)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_later_steps_work_on_uneven_blocks(kind, settings, family, tmp_path) -> None:
    after = applied(uneven(family), kind, **settings)
    assert logits(after).isfinite().all()
    again = reloaded(after, tmp_path)
    traits = traits_of(again.module, again.facts())
    assert any(UNEVEN in found for found in traits.values())
    if kind.startswith(("quantize", "lowrank")):
        own = QUANTIZED if kind.startswith("quantize") else LOWRANK
        first = {
            name: found for name, found in traits.items() if ".0." in name and "rm" not in name
        }
        assert all({own, UNEVEN} <= found for found in first.values() if own in found)


def test_awq_folds_heads_of_the_block_that_they_are_in(tmp_path) -> None:
    """A group of one block must not be scaled as one of another block's size."""
    model = uneven("llama")
    before = logits(model)
    after = applied(model, "quantize/awq", grid="int8-g32")
    torch.testing.assert_close(logits(after), before, atol=0.5, rtol=0.1)


def refusals(*steps: dict[str, Any], model: Model) -> list[str]:
    recipe = Recipe.model_validate(
        {"model": "m", "data": {"train": "t.txt"}, "steps": list(steps), "task": model.task}
    )

    class Inputs:
        task = model.task

    facts = model.facts()
    return fold(recipe, Inputs(), facts, traits_of(model.module, facts))  # type: ignore[arg-type]


def test_the_plan_refuses_what_needs_even_blocks() -> None:
    cut = {"prune/neurons": {"share": "uneven", "multiple": 4}}
    (problem,) = refusals(cut, {"prune/width": {"fraction": 0.5}}, model=tiny("llama"))
    assert "needs weights that are not uneven, but step 1 (prune/neurons) left" in problem
    assert "Move 'width' before it" in problem
    assert refusals({"prune/width": {"neurons": 32}}, cut, model=tiny("llama")) == []
    even = {"prune/neurons": {"multiple": 4}}
    assert refusals(even, {"prune/width": {"neurons": 32}}, model=tiny("llama")) == []
    (problem,) = refusals({"prune/width": {"neurons": 8}}, model=uneven())
    assert "but the original left" in problem


@pytest.mark.parametrize("scope", ["linears", "*.up_proj"])
def test_the_plan_refuses_what_is_in_two_factors(scope) -> None:
    first = {"lowrank/svd": {"keep": 0.5, "scope": [scope]}}
    second = {"prune/neurons": {"scope": ["linears"]}}
    (problem,) = refusals(first, second, model=tiny("llama"))
    assert "is one of two factors. Take neurons out before factorizing" in problem
    (problem,) = refusals(first, {"prune/width": {"fraction": 0.5}}, model=tiny("llama"))
    assert "is one of two factors; narrow a model before factorizing it" in problem


def test_a_trait_is_there_only_where_the_config_is_wrong() -> None:
    model = uneven()
    traits = traits_of(model.module, model.facts())
    assert traits["model.layers.1.mlp.up_proj"] == {FLOAT}
    assert traits["model.layers.0.mlp.up_proj"] == {FLOAT, UNEVEN}
    assert isinstance(model.module.get_submodule("model.layers.1.mlp.up_proj"), Resized)


def test_marks_of_masks_are_kept(tmp_path) -> None:
    model = tiny("gpt2")
    for linear in model.linears(Scope.of("mlp")).values():
        set_weight(linear, weight_of(linear).round())
        mark(linear)
    small = applied(model, "prune/neurons", fraction=0.5, multiple=4)
    save(small, tmp_path)
    again = load(Files(tmp_path))
    assert set(again.linears(Scope.of("mlp"))) == {
        name for name, part in again.module.named_modules() if getattr(part, "masked", False)
    }
