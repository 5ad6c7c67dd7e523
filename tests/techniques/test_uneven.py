"""Blocks of a size of their own: what the plan says of them, and what works on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attar.core.recipe import Recipe
from attar.core.scope import Scope
from attar.core.traits import FLOAT, LOWRANK, QUANTIZED, UNEVEN
from attar.engine.fold import fold
from attar.layers import Resized
from attar.models import Model, load, save
from attar.models.masks import mark
from attar.models.model import set_weight, weight_of
from attar.models.source import Files
from attar.models.traits import traits_of
from techniques.cutting import applied, reloaded, uneven
from tiny_models import assert_ordinary, logits, tiny


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
        task, config = model.task, model.config

    facts = model.facts()
    traits = traits_of(model.module, facts)
    return fold(recipe, Inputs(), facts, traits, 16.0).problems  # type: ignore[arg-type]


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
    assert problem.endswith("Take another model, or leave the step out")


@pytest.mark.parametrize("scope", ["linears", "*.up_proj"])
def test_the_plan_refuses_what_is_in_two_factors(scope) -> None:
    first = {"lowrank/svd": {"keep": 0.5, "scope": [scope]}}
    second = {"prune/neurons": {"scope": ["linears"]}}
    (problem,) = refusals(first, second, model=tiny("llama"))
    assert "is one of two factors. Take neurons out before factorizing" in problem
    (problem,) = refusals(first, {"prune/width": {"fraction": 0.5}}, model=tiny("llama"))
    assert "is one of two factors; narrow a model before factorizing it" in problem


def test_the_plan_names_a_factor_of_the_scope() -> None:
    first = {"lowrank/svd": {"keep": 0.5, "scope": ["mlp"]}}
    (problem,) = refusals(
        first, {"prune/neurons": {"scope": ["mlp & blocks[1]"]}}, model=tiny("llama")
    )
    assert "model.layers.1.mlp" in problem


def test_a_trait_is_there_only_where_the_config_is_wrong() -> None:
    model = uneven()
    traits = traits_of(model.module, model.facts())
    assert traits["model.layers.1.mlp.up_proj"] == {FLOAT}
    assert traits["model.layers.0.mlp.up_proj"] == {FLOAT, UNEVEN}
    assert isinstance(model.module.get_submodule("model.layers.0.mlp.up_proj"), Resized)


def test_blocks_that_kept_everything_are_ordinary(tmp_path) -> None:
    model = applied(uneven(), "prune/depth", blocks=(0, 2))
    assert not any(isinstance(part, Resized) for part in model.module.modules())
    assert_ordinary(applied(model, "prune/width", neurons=32), tmp_path)


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
