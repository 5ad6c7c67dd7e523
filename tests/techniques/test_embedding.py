"""Vectors of whole texts: as the model makes them, learned from a teacher, and measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

import attar
from attar.core.context import Context
from attar.core.registry import find
from attar.data.batches import held_out
from attar.errors import ModelError, PlanError
from attar.measure.quality import judge
from attar.measure.statistics import figures
from attar.models import load, save
from attar.models.model import Model
from attar.models.pooling import pooled, pooling_of, vectors
from attar.models.source import Files
from tiny_models import logits, tiny
from train.small import dataset

SHORT: dict[str, Any] = {"batch": 8, "length": 24, "steps": 20, "learning_rate": 3e-3}
PLACES = [
    ("bert", "embedding"),
    ("modernbert", "embedding"),
    ("bert", "masked-lm"),
    ("bert", "classification"),
    ("llama", "causal-lm"),
]


def context(teacher: Model) -> Context:
    data = {"train": dataset(), "dev": dataset("dev", 12)}
    return Context(teacher.task, data.__getitem__, lambda _: teacher)


def step(kind: str, model: Model, ctx: Context, **settings: Any) -> Model:
    return find(kind).model_validate({**SHORT, **settings}).apply(model, ctx)


def test_vectors_are_pooled_as_said() -> None:
    hidden = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    assert pooled(hidden, mask, "first").tolist() == [[0, 1, 2], [12, 13, 14]]
    assert pooled(hidden, mask, "last").tolist() == [[3, 4, 5], [21, 22, 23]]
    assert pooled(hidden, mask, "mean").tolist() == [[1.5, 2.5, 3.5], [16.5, 17.5, 18.5]]


def test_pooling_is_the_models_own_and_is_kept(tmp_path: Path) -> None:
    save(tiny("bert", "embedding"), tmp_path)
    assert pooling_of(load(Files(tmp_path))) == "mean"
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "sentence_pooling"})
    )
    said = tmp_path / "1_Pooling" / "config.json"
    said.parent.mkdir()
    said.write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    model = load(Files(tmp_path))
    assert (model.task, pooling_of(model)) == ("embedding", "first")
    save(model, tmp_path / "again")
    assert pooling_of(load(Files(tmp_path / "again"))) == "first"
    said.write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ModelError, match="pooling_mode_max_tokens"):
        load(Files(tmp_path))


@pytest.mark.parametrize(("family", "task"), PLACES)
@pytest.mark.parametrize("which", ["cosine", "similarities", "contrastive"])
def test_comes_nearer_to_the_teacher(which: str, family: str, task: Any) -> None:
    teacher, student = tiny(family, task, seed=1), tiny(family, task)
    few = dataset(count=8)
    ctx = Context(task, lambda _: few, lambda _: teacher)
    names = set(student.module.state_dict())
    only = {name: float(name == which) for name in ("cosine", "similarities", "contrastive")}
    step("distill/embedding", student, ctx, steps=40, evaluate_every=20, **only)
    first, last = ctx.curves["loss/embedding"][0][1], ctx.curves["loss/dev"][-1][1]
    assert last < 0.8 * first
    assert set(student.module.state_dict()) == names


def test_a_narrower_student_learns_through_a_projection() -> None:
    teacher = tiny("bert", "embedding", seed=1)
    sizes = {"hidden": 16, "heads": 2, "sequences": 4, "length": 16}
    student = (
        find("prune/width").model_validate(sizes).apply(tiny("bert", "embedding"), context(teacher))
    )
    ctx = context(teacher)
    step("distill/embedding", student, ctx, learning_rate=1e-3, contrastive=0.5)
    losses = [value for _, value in ctx.curves["loss/train"]]
    assert losses[-1] < losses[0]
    assert not any("signals" in name for name in student.module.state_dict())


def test_vectors_are_measured_by_their_cosine_to_the_references() -> None:
    model, other = tiny("bert", "embedding"), tiny("bert", "embedding", seed=1)
    batches = held_out(dataset(), model.tokenizer, "embedding", 16, 5, 12)
    with torch.no_grad():
        wanted = [
            value
            for batch in batches
            for value in functional.cosine_similarity(
                vectors(model, batch).double(), vectors(other, batch).double()
            ).tolist()
        ]
    items = judge(model, batches, other)
    assert items.cosine == pytest.approx(wanted, rel=1e-5)
    found = figures(items, None, "embedding")
    assert found["cosine"].value == pytest.approx(sum(wanted) / 12)
    assert set(found) == {"cosine"}
    assert set(figures(judge(model, batches), None, "embedding")) == set()


def test_a_recipe_for_an_encoder(tmp_path: Path) -> None:
    save(tiny("bert", "embedding"), tmp_path / "model")
    rows = "".join(json.dumps({"text": row.text}) + "\n" for row in dataset(count=60).examples)
    (tmp_path / "texts.jsonl").write_text(rows)
    recipe: dict[str, Any] = {
        "model": str(tmp_path / "model"),
        "data": str(tmp_path / "texts.jsonl"),
        "precision": "float32",
        "steps": [
            {"prune/depth": {"remove": 1, "sequences": 8, "length": 16}},
            {"distill/embedding": {**SHORT, "steps": 4}},
            {"quantize/rtn": {"grid": "int8-channel"}},
        ],
        "measures": {"sequences": 3, "length": 16, "speed": False},
    }
    done = attar.run(recipe, home=tmp_path / "home")
    assert done.report.task == "embedding"
    cosines = [stage.figures.get("cosine") for stage in done.report.stages]
    assert cosines[0] is None
    assert all(figure is not None and -1 <= figure.value <= 1 for figure in cosines[1:])
    again = done.load()
    assert torch.isfinite(logits(again)).all()
    with pytest.raises(PlanError, match=r"works for causal-lm, masked-lm, classification"):
        attar.plan({**recipe, "steps": [{"adapt/full": {}}]}, home=tmp_path / "home")
    with pytest.raises(PlanError, match=r"guard.accuracy is set, .* measured by its cosine"):
        attar.plan({**recipe, "guard": {"accuracy": 1.0}}, home=tmp_path / "home")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("distill/embedding", {"cosine": 0}),
        ("distill/embedding", {"contrastive": 1}),
        ("distill/logits", {"also": {"embedding": {"cosine": 0}}}),
    ],
)
def test_one_text_has_no_others_to_be_compared_with(kind: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="no others to be compared with"):
        find(kind).model_validate({"batch": 1, **settings})
    find(kind).model_validate({"batch": 2, **settings})
    find("distill/embedding").model_validate({"batch": 1})
