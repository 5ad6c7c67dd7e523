"""What is kept where: more of what a table says the answers need, and in all what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import attar
from attar.calibrate.table import By, parts_of, to_table
from attar.core.context import Context
from attar.core.recipe import Recipe
from attar.core.registry import find
from attar.core.scope import Scope
from attar.data.example import Dataset, Example
from attar.engine.fold import fold
from attar.models import Model, save
from attar.models.model import weight_of
from attar.models.traits import traits_of
from attar.ops.factor import rank_for
from tiny_models import logits, texts, tiny

DATA = {"sequences": 4, "length": 16, "batch": 2}
PRUNING = ("prune/magnitude", "prune/wanda", "prune/sparsegpt")
FACTORS = ("lowrank/svd", "lowrank/fisher", "lowrank/whitened")
SPARSITIES, KEEPS = (0.2, 0.5, 0.8), (0.3, 0.5, 0.9)


def tabled(model: Model, folder: Path, kind: str, by: By, **values: tuple[float, ...]) -> str:
    """A table that says that the last part needs each of its weights a hundred times as much."""
    ((setting, tried),) = values.items()
    parts, path = parts_of(model, Scope.linears(), by), folder / "sensitivity.tsv"
    needed = [100 if part is parts[-1] else 1 for part in parts]
    columns = {
        f"{kind} {setting}={value}": [
            part.weights * times * 1e-5 * 8 ** (value if setting == "sparsity" else 1 - value)
            for part, times in zip(parts, needed, strict=True)
        ]
        for value in tried
    }
    path.write_text(to_table(parts, columns, by), "utf-8")
    return str(path)


def applied(model: Model, kind: str, **settings: Any) -> Context:
    """Apply one step, of which the plan foresaw the modules."""
    labels = model.labels or (None,)
    rows = [Example(t, labels[n % len(labels)]) for n, t in enumerate(texts(count=40, length=16))]
    ctx = Context(
        model.task, lambda _: Dataset("train", rows, "", tuple(model.labels)), lambda _: model
    )
    step, facts = find(kind), model.facts()
    kept = {name: value for name, value in DATA.items() if name in step.model_fields}
    made = step.model_validate({**kept, **settings})
    assert list(made.check(facts)) == []
    foreseen = list(made.reshape(facts))
    made.apply(model, ctx)
    assert foreseen == model.facts()
    return ctx


def zeros(model: Model) -> dict[str, float]:
    linears = model.linears(Scope.linears())
    return {name: float((weight_of(x) == 0).float().mean()) for name, x in linears.items()}


@pytest.mark.parametrize("by", ["role", "linear"])
@pytest.mark.parametrize("kind", PRUNING)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_fewer_zeros_where_the_answers_need_weights(
    family: str, kind: str, by: By, tmp_path: Path
) -> None:
    model = tiny(family)
    table = tabled(model, tmp_path, kind, by, sparsity=SPARSITIES)
    needed = parts_of(model, Scope.linears(), by)[-1]
    ctx = applied(model, kind, sparsity=0.6, sensitivity=table)
    found = zeros(model)
    sizes = {name: weight_of(x).numel() for name, x in model.linears(Scope.linears()).items()}
    total = sum(sizes.values())
    assert sum(found[name] * sizes[name] for name in sizes) == pytest.approx(0.6 * total, rel=0.02)
    others = (0.6 * total - 0.2 * needed.weights) / (total - needed.weights)
    for name, share in found.items():
        wanted = 0.2 if name in needed.names else others
        assert share == pytest.approx(wanted, abs=0.03), name
    assert (needed.block, pytest.approx(0.8)) in ctx.curves[f"block share kept, {needed.name}"]


@pytest.mark.parametrize("by", ["role", "linear"])
@pytest.mark.parametrize("kind", FACTORS)
@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_higher_ranks_where_the_answers_need_them(
    family: str, task: Any, kind: str, by: By, tmp_path: Path
) -> None:
    def weights(model: Model) -> int:
        return sum(weight_of(part).numel() for part in model.linears(Scope.linears()).values())

    model, same = tiny(family, task), tiny(family, task)
    table = tabled(model, tmp_path, kind, by, keep=KEEPS)
    needed = parts_of(model, Scope.linears(), by)[-1]
    shapes = {name: weight_of(x).shape for name, x in model.linears(Scope.linears()).items()}
    applied(model, kind, keep=0.5, sensitivity=table)
    applied(same, kind, keep=0.5)
    assert 0.95 * weights(same) < weights(model) <= weights(same)
    for name, (rows, width) in shapes.items():
        rank = model.module.get_submodule(name).rank
        if name in needed.names:
            assert rank == rank_for(rows, width, 0.9)
        else:
            assert rank <= rank_for(rows, width, 0.6)
    save(model, tmp_path / "saved")
    assert torch.equal(logits(attar.load(tmp_path / "saved")), logits(model))


def test_a_linear_outside_the_blocks_has_the_average(tmp_path: Path) -> None:
    model = tiny("llama", tie_word_embeddings=False)
    table = tabled(model, tmp_path, "prune/magnitude", "role", sparsity=SPARSITIES)
    scope = ["linears", "head"]
    applied(model, "prune/magnitude", sparsity=0.6, sensitivity=table, scope=scope)
    head = weight_of(model.module.lm_head)
    assert float((head == 0).float().mean()) == pytest.approx(0.6, abs=0.001)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("prune/wanda", {"sparsity": 0.9}, "sparsity from 0.2 to 0.8, and 0.9 is asked for"),
        ("prune/wanda", {"sparsity": 0.1}, "sparsity from 0.2 to 0.8, and 0.1 is asked for"),
        ("prune/sparsegpt", {}, "has no column of prune/sparsegpt with a sparsity"),
        ("lowrank/svd", {}, "has no column of lowrank/svd with a keep"),
        ("prune/wanda", {"scope": "*.q_proj"}, "only some of its linears are in scope"),
    ],
)
def test_a_table_that_will_not_do_is_refused_by_the_plan(
    kind: str, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = tiny("llama")
    table = tabled(model, tmp_path, "prune/wanda", "role", sparsity=SPARSITIES)
    steps = [{kind: {"sensitivity": table, **settings}}, {"quantize/rtn": {}}]
    recipe = Recipe.model_validate(
        {"model": "m", "data": {"train": "t.txt"}, "steps": steps, "task": model.task}
    )

    class Inputs:
        task = model.task
        config = model.config

    facts = model.facts()
    traits = traits_of(model.module, facts)
    (problem,) = fold(recipe, Inputs(), facts, traits, 16.0).problems  # type: ignore[arg-type]
    assert said in problem


def test_a_table_of_the_model_before_is_refused_after_blocks_are_gone(tmp_path: Path) -> None:
    model = tiny("llama")
    table = tabled(model, tmp_path, "prune/wanda", "role", sparsity=SPARSITIES)
    facts = [fact for fact in model.facts() if fact.block != 2]
    (problem,) = find("prune/wanda").model_validate({"sensitivity": table}).check(facts)
    assert "was measured on a model of other blocks" in problem


@pytest.mark.parametrize("kind", PRUNING)
def test_a_pattern_cannot_be_shared_out(kind: str) -> None:
    with pytest.raises(ValidationError, match="`sensitivity` has nothing to share out"):
        find(kind).model_validate({"pattern": "2:4", "sensitivity": "t.tsv"})


@pytest.mark.parametrize("kind", [*FACTORS, "lowrank/residual"])
def test_a_norm_in_the_scope_of_factors_is_refused_by_the_plan(kind: str) -> None:
    step, facts = find(kind).model_validate({"scope": "norm"}), tiny("llama").facts()
    (problem,) = step.check(facts)
    assert "is no linear" in problem
    assert list(step.reshape(facts)) == facts
