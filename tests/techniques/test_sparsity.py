"""Zeros: as many as asked for, and still there after saving, training, cutting and rounding."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from attar.core.context import Context
from attar.core.registry import find
from attar.core.scope import Scope, outside_blocks
from attar.core.traits import FLOAT, MASKED
from attar.data.example import Dataset, Example
from attar.errors import UserError
from attar.models import Model, load, save
from attar.models.load import config_of, skeleton
from attar.models.masks import is_masked
from attar.models.model import weight_of
from attar.models.resize import drop_blocks, narrow
from attar.models.source import Files
from attar.models.traits import traits_of
from tiny_models import assert_ordinary, texts, tiny

WALKED = ("prune/wanda", "prune/sparsegpt")
KINDS = ("prune/magnitude", "prune/wanda", "prune/sparsegpt")
DATA = {"sequences": 4, "length": 16, "batch": 2}


def applied(model: Model, kind: str, **settings: object) -> tuple[Model, Context]:
    """The model after one step, with its context."""
    data = Dataset("train", [Example(t, None) for t in texts(count=40, length=16)], "", ())
    ctx = Context(model.task, lambda _: data, lambda _: tiny("llama"))
    step = find(kind)
    more = {name: value for name, value in DATA.items() if name in step.model_fields}
    return step.model_validate({**more, **settings}).apply(model, ctx), ctx


def zeros(model: Model) -> dict[str, torch.Tensor]:
    """Where each linear of the blocks is zero."""
    linears = model.linears(Scope.linears())
    return {name: weight_of(linear).detach() == 0 for name, linear in linears.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_as_many_zeros_as_asked_for(kind: str, family: str, tmp_path: Path) -> None:
    model, ctx = applied(tiny(family), kind, sparsity=0.25)
    for name, gone in zeros(model).items():
        assert gone.float().mean().item() == pytest.approx(0.25, abs=0.01), name
    assert ctx.notes["zeros"].startswith("25.00%")
    assert "save no bytes" in ctx.notes["saved as"]
    assert_ordinary(model, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_two_of_four(kind: str) -> None:
    model, _ = applied(tiny("llama"), kind, pattern="2:4")
    for name, gone in zeros(model).items():
        assert (gone.reshape(len(gone), -1, 4).sum(2) == 2).all(), name


@pytest.mark.parametrize(
    "settings", [{"sparsity": 0.5, "pattern": "2:4"}, {"pattern": "4:2"}, {"pattern": "half"}]
)
def test_a_pattern_that_makes_no_sense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"keep one|no pattern"):
        find("prune/wanda").model_validate(settings)


@pytest.mark.parametrize("kind", [*KINDS, "prune/gradual", "prune/movement"])
def test_a_scope_without_linears_is_refused(kind: str) -> None:
    facts = tiny("llama").facts()
    (problem,) = find(kind).model_validate({"scope": "norm"}).check(facts)
    assert "its scope names no linear" in problem
    head = find(kind).model_validate({"scope": "head"})
    assert list(head.check(facts)) == []
    assert head.walked == (kind in WALKED)  # which the plan refuses, and the walk
    (outside,) = outside_blocks(facts, head.scope.select(facts))
    assert "lm_head lies outside the blocks" in outside


@pytest.mark.parametrize("kind", ["prune/magnitude", "prune/gradual", "prune/movement"])
def test_zeros_do_not_come_into_the_embeddings(kind: str) -> None:
    model = tiny("llama", tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"lm_head has the embeddings' own weight"):
        applied(model, kind, scope=["linears", "head"])


@pytest.mark.parametrize("kind", ["adapt/full", "distill/logits"])
def test_training_leaves_zeros_where_they_are(kind: str, tmp_path: Path) -> None:
    model, _ = applied(tiny("llama"), "prune/magnitude")
    before = zeros(model)
    save(model, tmp_path / "saved")
    model = load(Files(tmp_path / "saved"))
    weights = {name: weight_of(x).clone() for name, x in model.linears(Scope.linears()).items()}
    trained, _ = applied(model, kind, steps=3, learning_rate=0.01)
    for name, linear in trained.linears(Scope.linears()).items():
        assert not torch.equal(weight_of(linear), weights[name])
        assert torch.equal(weight_of(linear) == 0, before[name]), name


ROUNDING: dict[str, list[dict[str, object]]] = {
    "quantize/rtn": [{"grid": name} for name in ("int4-g32", "int8-channel", "int4-g32-zp")],
    "quantize/gptq": [{"grid": name} for name in ("int4-g32", "int8-channel", "int4-g32-zp")],
    "quantize/awq": [{"grid": "int4-g32-zp"}],
    "quantize/autoround": [
        {"grid": name, "steps": 8} for name in ("int2-g32", "int4-g32-zp", "nf4-g32")
    ],
    "quantize/mixed": [{"grids": ["int2-g32", "int4-g32-zp"], "bits": 3.0, "measured": 2}],
    "quantize/qat": [{"grid": "int2-g32", "steps": 3, "learning_rate": 0.1, "keep_best": False}],
    "quantize/dynamic": [{}],
    "quantize/smoothquant": [{}],
    "quantize/static": [{}],
}
PRUNED: list[tuple[str, dict[str, object]]] = [
    ("prune/sparsegpt", {}),
    ("prune/sparsegpt", {"pattern": "2:4"}),
    ("prune/magnitude", {"sparsity": 0.6}),
]


@pytest.mark.parametrize(
    ("kind", "settings"), [(kind, each) for kind, some in ROUNDING.items() for each in some]
)
@pytest.mark.parametrize(("pruning", "how"), PRUNED, ids=str)
def test_rounding_leaves_zeros_where_they_are(
    kind: str,
    settings: dict[str, object],
    pruning: str,
    how: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = count(start=0, step=-1)  # so that what a block learns is kept, though of few rows
    monkeypatch.setattr("attar.calibrate.matching._judge", lambda *_: next(errors))
    model, _ = applied(tiny("llama"), pruning, **how)
    before = zeros(model)
    rounded, _ = applied(model, kind, **settings)
    for name, linear in rounded.linears(Scope.linears()).items():
        weight = weight_of(linear)
        assert (weight[before[name]] == 0).all(), name
        assert (weight != 0).any()
        assert is_masked(linear)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("quantize/hqq", {}),
        ("quantize/gptq", {"grid": "int4-g32-min"}),
        ("quantize/autoround", {"grid": "int4-g32-min"}),
        ("quantize/mixed", {"grids": ["int2-g32", "int4-g32-min"]}),
    ],
)
def test_grids_that_hold_no_zero_are_refused(kind: str, settings: dict[str, object]) -> None:
    model, _ = applied(tiny("llama"), "prune/magnitude")
    with pytest.raises(UserError, match=r"was pruned.*Take int4-g(32|64)-zp, which holds zero"):
        applied(model, kind, **settings)


def test_marks_are_kept_by_files_and_by_surgery(tmp_path: Path) -> None:
    model, _ = applied(tiny("llama"), "prune/magnitude", scope=["mlp"])
    save(model, tmp_path / "saved")
    files = Files(tmp_path / "saved")
    empty = skeleton(config_of(files), "causal-lm")
    traits = traits_of(empty.module, empty.facts())
    for name, found in traits.items():
        assert found == ({FLOAT, MASKED} if ".mlp." in name and "act" not in name else {FLOAT})
    shallow = load(files)
    drop_blocks(shallow, [0])
    for small in (shallow, narrow(load(files), neurons=[list(range(32))] * 3)):
        marked = {name for name, module in small.module.named_modules() if is_masked(module)}
        assert marked == set(small.linears(Scope.of("mlp")))


def test_the_embeddings_are_not_pruned_with_a_head_that_is_tied_to_them() -> None:
    with pytest.raises(UserError, match=r"lm_head has the embeddings' own weight.*'!lm_head'"):
        applied(tiny("llama"), "prune/magnitude", scope="head")
    table = tiny("llama").base.embed_tokens.weight
    model, _ = applied(tiny("llama"), "prune/magnitude", scope=["all", "!lm_head"])
    assert torch.equal(model.base.embed_tokens.weight, table)
    free = tiny("llama", tie_word_embeddings=False)
    table = free.base.embed_tokens.weight.clone()
    model, _ = applied(free, "prune/magnitude", scope="head")
    assert (model.module.lm_head.weight == 0).float().mean() == 0.5
    assert torch.equal(model.base.embed_tokens.weight, table)
