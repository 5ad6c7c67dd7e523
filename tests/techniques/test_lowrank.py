"""Two thin linears for one: fewer weights, foreseen by the plan, and fit for what comes after."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import attar
from attar.calibrate.rows import calibration
from attar.calibrate.sensitivity import answers, moved
from attar.core.context import Context
from attar.core.registry import find
from attar.core.scope import Scope
from attar.core.traits import FLOAT, LOWRANK, QUANTIZED
from attar.data.example import Dataset, Example
from attar.errors import UserError
from attar.layers import LowRank
from attar.models import Model, load, save
from attar.models.load import config_of, skeleton
from attar.models.model import set_weight, weight_of
from attar.models.source import Files
from attar.models.traits import traits_of
from attar.techniques.lowrank.balanced import Balanced
from tiny_models import PAIRS, logits, texts, tiny

KINDS = ("lowrank/fisher", "lowrank/svd", "lowrank/whitened")
DATA = {"sequences": 4, "length": 16, "batch": 2}


def applied(model: Model, kind: str, **settings: object) -> Model:
    """The model after one step; the plan foresaw its modules."""
    labels = model.labels or (None,)
    rows = [Example(t, labels[n % len(labels)]) for n, t in enumerate(texts(count=40, length=16))]
    data = Dataset("train", rows, "", tuple(model.labels))
    ctx = Context(model.task, lambda _: data, lambda _: tiny("llama"))
    kept = {name: value for name, value in DATA.items() if name in find(kind).model_fields}
    step = find(kind).model_validate({**kept, **settings})
    facts = model.facts()
    assert list(step.check(facts)) == []
    result = step.apply(model, ctx)
    assert list(step.reshape(facts)) == result.facts()
    return result


def weights(model: Model) -> int:
    """Weights in the linears of the blocks."""
    return sum(p.numel() for name, p in model.module.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_smaller_and_the_same_after_saving(
    kind: str, family: str, task: str, tmp_path: Path
) -> None:
    model = tiny(family, task)
    before = weights(model)
    small = applied(model, kind, keep=0.5)
    assert weights(small) < before
    save(small, tmp_path / "saved")
    assert torch.equal(logits(attar.load(tmp_path / "saved")), logits(small))
    empty = skeleton(config_of(Files(tmp_path / "saved")), task)
    traits = traits_of(empty.module, empty.facts())
    factors = [name for name, found in traits.items() if LOWRANK in found]
    assert factors
    assert all(name.endswith((".up", ".down")) for name in factors)


def test_bfloat16_stays(tmp_path: Path) -> None:
    save(tiny("llama"), tmp_path / "original")
    model = load(Files(tmp_path / "original"), dtype="bfloat16")
    small = applied(model, "lowrank/whitened", keep=0.5)
    save(small, tmp_path / "saved")
    again = load(Files(tmp_path / "saved"))
    assert {p.dtype for p in again.module.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(again), logits(small))


@pytest.mark.parametrize("kind", ["adapt/full", "distill/logits"])
def test_factors_are_trained(kind: str) -> None:
    small = applied(tiny("llama"), "lowrank/svd", keep=0.5)
    before = {name: p.clone() for name, p in small.module.named_parameters()}
    trained = applied(small, kind, steps=2, learning_rate=0.01)
    after = dict(trained.module.named_parameters())
    moved = [name for name, old in before.items() if not torch.equal(after[name], old)]
    assert {name for name in before if ".up." in name or ".down." in name} <= set(moved)


@pytest.mark.parametrize("kind", ["quantize/rtn", "quantize/gptq"])
def test_factors_are_rounded(kind: str, tmp_path: Path) -> None:
    small = applied(tiny("llama"), "lowrank/whitened", keep=0.5)
    rounded = applied(small, kind, grid="int8-channel")
    linears = rounded.linears(Scope.linears())
    assert {name.rpartition(".")[2] for name in linears} == {"up", "down"}
    save(rounded, tmp_path / "saved")
    assert torch.equal(logits(attar.load(tmp_path / "saved")), logits(rounded))
    empty = skeleton(config_of(Files(tmp_path / "saved")), "causal-lm")
    traits = traits_of(empty.module, empty.facts())
    assert {frozenset(traits[name]) for name in linears} == {frozenset({QUANTIZED, LOWRANK})}
    assert FLOAT in traits["lm_head"]


def test_a_dead_input_and_a_bias_are_no_trouble() -> None:
    model = tiny("bert")
    first = model.blocks[0]
    with torch.no_grad():
        next(p for name, p in first.named_parameters() if name.endswith("weight")).zero_()
    small = applied(model, "lowrank/whitened", keep=0.5)
    assert logits(small).isfinite().all()
    assert all(
        module.bias is not None for module in small.module.modules() if isinstance(module, LowRank)
    )


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_ranks_are_shared_out_over_the_model(family: str, task: str, tmp_path: Path) -> None:
    model = tiny(family, task)
    labels = model.labels or (None,)
    rows = [Example(t, labels[n % len(labels)]) for n, t in enumerate(texts(count=40, length=16))]
    data = Dataset("train", rows, "", tuple(model.labels))
    ctx = Context(model.task, lambda _: data, lambda _: None)
    before = sum(weight_of(part).numel() for part in model.linears(Scope.linears()).values())
    step = find("lowrank/balanced").model_validate({**DATA, "keep": 0.6, "measured": 4})
    small = step.apply(model, ctx)
    after = sum(weight_of(part).numel() for part in small.linears(Scope.linears()).values())
    assert 0.5 * before < after <= 0.6 * before
    ranks = {part.rank for part in small.module.modules() if isinstance(part, LowRank)}
    assert len(ranks) > 1
    assert ctx.notes["foreseen divergence"] > 0
    save(small, tmp_path / "saved")
    assert torch.equal(logits(attar.load(tmp_path / "saved")), logits(small))


@pytest.mark.parametrize("keep", [0.6, 0.45, 0.3])
def test_the_foreseen_divergence_is_what_is_measured(keep: float) -> None:
    """Each rank is worth what it says, so that the budget goes where the answers need it."""
    model = tiny("llama")
    for linear in model.linears(Scope.linears()).values():  # as trained ones, nearly of low rank
        left, sizes, right = torch.linalg.svd(weight_of(linear).detach(), full_matrices=False)
        set_weight(linear, left * (sizes * 0.85 ** torch.arange(len(sizes))) @ right)
    data = Dataset("train", [Example(text) for text in texts(count=200, length=16)], "", ())
    ctx = Context("causal-lm", lambda _: data, lambda _: None)  # type: ignore[arg-type,return-value]
    settings = {"sequences": 64, "length": 16, "batch": 8, "measured": 64, "keep": keep}
    step = Balanced.model_validate(settings)
    batches = calibration(step, model, ctx)
    before = [answers(model, batch, ctx) for batch in batches]
    small = step.apply(model, ctx)
    pairs = zip(batches, before, strict=True)
    lost = [moved(small, answers(small, batch, ctx), own) for batch, own in pairs]
    assert ctx.notes["foreseen divergence"] == pytest.approx(sum(lost) / len(lost), rel=0.3)


def test_ranks_that_no_factors_are_thin_enough_for_are_refused() -> None:
    step = find("lowrank/balanced").model_validate({"keep": 0.01})
    (problem,) = step.check(tiny("llama").facts())
    assert "below what factors of rank 1 hold" in problem


def test_a_tied_head_leaves_its_table(tmp_path: Path) -> None:
    """Alone in scope it is made thin, and the embeddings stay; else they stay one tensor."""
    model = tiny("llama", tie_word_embeddings=True)
    table = model.module.get_input_embeddings().weight.detach().clone()
    small = applied(model, "lowrank/svd", keep=0.5, scope="lm_head")
    assert isinstance(small.module.lm_head, LowRank)
    assert torch.equal(small.module.get_input_embeddings().weight, table)
    save(small, tmp_path / "saved")
    assert torch.equal(logits(attar.load(tmp_path / "saved")), logits(small))
    other = applied(tiny("llama", tie_word_embeddings=True), "lowrank/whitened", keep=0.5)
    assert other.module.lm_head.weight is other.module.get_input_embeddings().weight


def test_fisher_goes_by_the_rows_that_have_a_label() -> None:
    model = tiny("bert", "classification")
    rows = [Example(text) for text in texts(8, 16)]
    labeled = [replace(row, label=model.labels[i % 2]) for i, row in enumerate(rows)]

    def apply(rows: list[Example]) -> Model:
        one = copy.deepcopy(model)
        data = Dataset("train", rows, "", tuple(model.labels))
        ctx = Context(model.task, lambda _: data, lambda _: None)
        settings = {"keep": 0.6, "sequences": 4, "length": 32}
        return find("lowrank/fisher").model_validate(settings).apply(one, ctx)

    with pytest.raises(UserError, match="none of the 4 sequences measured on has a label"):
        apply([*rows[:4], *labeled[4:]])
    some, all_ = apply([labeled[0], labeled[1], *rows[2:]]), apply([labeled[0], labeled[1]])
    for one, other in zip(some.module.parameters(), all_.module.parameters(), strict=True):
        assert torch.equal(one, other)
