"""One task after another, and what is kept of those before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from attar.core.context import Context
from attar.core.registry import find
from attar.core.report import Figure
from attar.data.batches import Stream
from attar.data.example import Dataset, Example
from attar.engine.run import run
from attar.errors import DataError, RecipeError
from attar.measure.forgetting import forgetting
from attar.models import save
from attar.models.model import Model
from attar.train.losses import Objective, judge, plain
from attar.train.rows import held_out_of
from techniques.losing import DIVERGENCES, LOGITS, MOVING, costs, mixed, same

SHORT: dict[str, Any] = {"batch": 8, "length": 16, "steps": 30, "learning_rate": 5e-3}


def counting(name: str, step: int, count: int = 64) -> Dataset:
    """Texts that count up by one, or by another step."""
    texts = (" ".join(f"w{(n + step * k) % 90}" for k in range(14)) for n in range(count))
    return Dataset(name, [Example(text) for text in texts], name)


DATA = {"one": counting("one", 1), "other": counting("other", 7)}


def context(scratch: Path | None = None) -> Context:
    return Context("causal-lm", DATA.__getitem__, DATA.__getitem__, scratch=scratch)


def surprise(model: Model, name: str) -> float:
    """The task's own loss on a dataset."""
    step = find("adapt/full").model_validate(SHORT)
    held = held_out_of(name, model, step, context())  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        return judge(Objective(model), held, plain(1.0))()


@pytest.fixture(scope="module")
def learned() -> dict[str, torch.Tensor]:
    """Weights of a model that has learned the first task."""
    model = tiny_models.tiny("llama")
    step = find("adapt/full").model_validate({**SHORT, "data": "one", "held_out": None})
    return step.apply(model, context()).module.state_dict()


def go_on(learned: dict[str, torch.Tensor], **settings: Any) -> Model:
    model = tiny_models.tiny("llama")
    model.module.load_state_dict(learned)
    step = find("distill/continual").model_validate({**SHORT, "data": "other", **settings})
    return step.apply(model, context())


def test_rehearsal_and_the_former_self_keep_the_earlier_task(
    learned: dict[str, torch.Tensor],
) -> None:
    start = tiny_models.tiny("llama")
    start.module.load_state_dict(learned)
    plain_ = go_on(learned, weight=0.0)
    distilled = go_on(learned, weight=0.8)
    rehearsed = go_on(learned, weight=0.5, earlier=["one"], rehearsal=0.3)
    assert surprise(plain_, "one") > surprise(start, "one") + 0.5  # it forgets
    assert surprise(distilled, "one") < surprise(plain_, "one")
    assert surprise(rehearsed, "one") < surprise(distilled, "one")
    assert surprise(rehearsed, "other") < surprise(start, "other")


@pytest.mark.parametrize("task", ["causal-lm", "classification"])
def test_so_many_rows_are_rehearsed(task: Any) -> None:
    def stream(name: str) -> Stream:
        rows = [
            Example(f"{name} {text}", "bad") for text in tiny_models.texts(60, 13, seed=len(name))
        ]
        data = Dataset(name, rows, name)
        tokenizer = tiny_models.tokenizer()
        return Stream(data, tokenizer, task, 16, 4, 0, labels=("bad",))

    new, earlier = stream("w1"), [stream("w22"), stream("w333")]
    mixed = new.with_some_of(earlier, 0.5)
    each = round(new.rows / 2)
    assert mixed.rows == new.rows + 2 * each
    ids = torch.cat([mixed.batch(n).input_ids.flatten() for n in range(mixed.per_epoch)])
    firsts = [tiny_models.tokenizer().convert_tokens_to_ids(t) for t in ("w1", "w22", "w333")]
    if task == "classification":
        assert [
            int((ids == f).sum()) >= n for f, n in zip(firsts, (new.rows, each, each), strict=True)
        ]
    again = new.with_some_of(earlier, 0.5)
    assert torch.equal(mixed.batch(3).input_ids, again.batch(3).input_ids)
    assert new.with_some_of(earlier, 0.001).rows == new.rows + 2  # one of each task at least
    few = new.with_some_of(earlier, 0.99)  # more than there are
    assert few.rows == new.rows + sum(one.rows for one in earlier)


def test_an_earlier_task_without_labels_is_refused() -> None:
    data = {
        "train": Dataset("train", [Example("w1 w2", "bad"), Example("w3", "good")], "a"),
        "before": Dataset("before", [Example("w4 w5")], "b"),
    }
    model = tiny_models.tiny("bert", "classification")
    ctx = Context("classification", data.__getitem__, lambda _: model)
    step = find("distill/continual").model_validate({**SHORT, "earlier": ["before"]})
    with pytest.raises(DataError, match=r"'before' has no labels"):
        step.apply(model, ctx)


def files(folder: Path) -> dict[str, Any]:
    """A model, two tasks with data held out, and a recipe that learns one after the other."""
    save(tiny_models.tiny("llama"), folder / "model")
    data: dict[str, Any] = {}
    for name, step in (("one", 1), ("other", 7)):
        rows = counting(name, step, 90).examples
        for part, some in (("", rows[:70]), ("-held-out", rows[70:])):
            path = folder / f"{name}{part}.txt"
            path.write_text("\n".join(row.text for row in some), "utf-8")
            data[f"{name}{part}"] = str(path)
    learn = {**SHORT, "data": "one", "held_out": None, "id": "first"}
    then = {**SHORT, "data": "other", "earlier": ["one"], "id": "second"}
    return {
        "model": str(folder / "model"),
        "data": data,
        "precision": "float32",
        "steps": [{"adapt/full": learn}, {"distill/continual": then}],
        "measures": {
            "data": "one-held-out",
            "also": ["one-held-out", "other-held-out"],
            "sequences": 8,
            "length": 16,
            "speed": False,
        },
        "guard": {"enabled": False},
    }


def test_every_stage_is_measured_on_every_task(tmp_path: Path) -> None:
    recipe = files(tmp_path)
    done = run(recipe, home=tmp_path / "home")
    names = ["perplexity on one-held-out", "perplexity on other-held-out"]
    matrix = [[stage.figures[name].value for name in names] for stage in done.report.stages]
    assert len(matrix) == 3
    for stage in done.report.stages:  # the guard's own data among them: the same number
        assert stage.figures[names[0]].value == stage.figures["perplexity"].value
    assert matrix[1][0] < matrix[0][0]
    assert matrix[2][1] < matrix[1][1]
    assert "forgetting" not in done.report.stages[0].figures
    lost = done.report.stages[2].figures["forgetting"].value
    best = [min(row[column] for row in matrix) for column in range(2)]
    wanted = sum(torch.log(torch.tensor(matrix[2][n] / best[n])).item() for n in range(2)) / 2
    assert lost == pytest.approx(wanted, abs=1e-6)


def test_held_out_data_of_a_task_is_not_trained_on(tmp_path: Path) -> None:
    recipe = files(tmp_path)
    recipe["steps"][1]["distill/continual"]["earlier"] = ["other-held-out"]
    with pytest.raises(RecipeError, match=r"`earlier` reads 'other-held-out'.*`measures\.also`"):
        run(recipe, home=tmp_path / "home")
    recipe = files(tmp_path)
    recipe["measures"]["also"] = ["third"]
    with pytest.raises(RecipeError, match=r"`measures\.also` reads the data 'third'"):
        run(recipe, home=tmp_path / "home")


def test_forgetting_is_what_is_missing_to_the_best() -> None:
    def stage(*values: float) -> dict[str, Figure]:
        return {f"accuracy on {n}": Figure(value=v, unit="%") for n, v in enumerate(values)}

    stages = [stage(50.0, 40.0), stage(90.0, 45.0), stage(70.0, 80.0)]
    names = list(stages[0])
    found = forgetting(stages, names)
    assert found is not None
    assert (found.value, found.unit) == (10.0, "points")
    assert forgetting(stages, [*names, "accuracy on another"]) is None
    assert forgetting([], names) is None


@pytest.mark.parametrize("divergence", [*DIVERGENCES, LOGITS], ids=str)
def test_the_former_self_teaches_as_any_teacher(
    divergence: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any divergence, with a weight that moves, once the model is another than it was."""
    settings = {**SHORT, **MOVING, **divergence, "data": "other", "held_out": "one"}
    former, now = tiny_models.tiny("llama", seed=1), tiny_models.tiny("llama")
    kind, ctx = "distill/continual", context()
    found = costs(kind, settings, tiny_models.tiny("llama", seed=1), ctx, monkeypatch, become=now)
    ctx = Context("causal-lm", DATA.__getitem__, lambda _: former)
    one = costs("distill/logits", settings, now, ctx, monkeypatch, batch=found.batch)
    same(found, one)
    assert found.score == pytest.approx(one.score, rel=1e-5)


def test_the_weight_moves_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    former, now = tiny_models.tiny("llama", seed=1), tiny_models.tiny("llama")
    settings = {**SHORT, **MOVING, "data": "other"}
    student = tiny_models.tiny("llama", seed=1)
    kind, ctx = "distill/continual", context()
    found = costs(kind, settings, student, ctx, monkeypatch, become=now)
    own, theirs = (
        one.logits(found.batch)[:, :-1].detach().double().log_softmax(-1) for one in (now, former)
    )
    divergence = (theirs.exp() * (theirs - own)).sum(-1).mean()
    labels = found.batch.labels[:, 1:]
    assert bool((labels >= 0).all())
    task = -own.gather(-1, labels.unsqueeze(-1)).mean()
    assert found.totals == mixed(float(divergence), float(task))
