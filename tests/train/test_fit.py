"""The loop: it learns, keeps the best, stops in time, and says what went wrong."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from attar.core.context import Context
from attar.core.registry import find
from attar.core.scope import Scope
from attar.core.step import Task
from attar.data.batches import Batch
from attar.errors import DataError, MissingPackage, OutOfMemory, TrainingDiverged
from attar.models.model import Model
from attar.techniques.adapt.full import Full
from attar.train.fit import fit
from attar.train.losses import Loss, Objective, judge, plain
from attar.train.rows import held_out_of, stream_of
from train.small import dataset, equal, folders, weights

Contexts = Callable[..., Context]
SHORT: dict[str, Any] = {"batch": 4, "length": 16, "learning_rate": 3e-3}


def score(model: Model, ctx: Context) -> float:
    with torch.no_grad():
        return judge(Objective(model), held_out_of("dev", model, Full(**SHORT), ctx), plain(1))()


@pytest.mark.parametrize(
    ("model_type", "task"),
    [("llama", "causal-lm"), ("bert", "masked-lm"), ("distilbert", "classification")],
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_learns(context: Contexts, model_type: str, task: Task, optimizer: str) -> None:
    model, ctx = tiny_models.tiny(model_type, task), context(task)
    before = score(model, ctx)
    rate = 3e-3 if optimizer == "adamw" else 0.05
    Full(**{**SHORT, "steps": 30, "optimizer": optimizer, "learning_rate": rate}).apply(model, ctx)
    assert score(model, ctx) < 0.97 * before
    assert not model.module.training
    assert ctx.notes["tokens"] > 0
    assert ctx.notes["precision"] == "float32"
    assert {"loss/train", "loss/dev", "loss/task"} <= ctx.curves.keys()
    assert [x for x, _ in ctx.curves["loss/dev"]] == [0, 8, 16, 24, 30]


def test_the_global_seed_does_not_matter(context: Contexts) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = tiny_models.tiny("bert", "masked-lm")  # it has dropout
        Full(**SHORT, steps=3).apply(model, context("masked-lm"))
        found.append(weights(model))
    assert equal(*found)
    other = tiny_models.tiny("bert", "masked-lm")
    Full(**SHORT, steps=3).apply(other, context("masked-lm", seed=1))
    assert not equal(found[0], weights(other))


def test_accumulating_is_a_larger_batch(context: Contexts) -> None:
    """Also for masked positions, of which every batch has another number."""
    found = []
    for batch, accumulate in ((8, 1), (2, 4)):
        model = tiny_models.tiny("bert", "masked-lm", hidden_dropout_prob=0.0)
        model.module.config.attention_probs_dropout_prob = 0.0
        for module in model.module.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        settings = {**SHORT, "batch": batch, "accumulate": accumulate, "optimizer": "sgd"}
        Full(**settings, steps=3, held_out=None).apply(model, context("masked-lm"))
        found.append(weights(model))
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-4, atol=1e-5)


def fitted(context: Contexts, scores: list[float], **more: Any) -> tuple[Any, Model, list[Any]]:
    """A training whose evaluations are given, with the weights at each of them."""
    model, ctx = tiny_models.tiny("llama"), context()
    step = Full(**SHORT, evaluate_every=1, **more)
    told, seen = iter(scores), []

    def evaluate() -> float:
        seen.append(weights(model))
        return next(told)

    stream = stream_of(ctx.data("train"), model, step, ctx)
    return fit(model, Objective(model), stream, step, ctx, evaluate), model, seen


def test_keeps_the_best_state(context: Contexts) -> None:
    result, model, seen = fitted(context, [4.0, 3.0, 1.0, math.nan, 2.0], steps=4)
    assert (result.best, result.best_step, result.steps) == (1.0, 2, 4)
    assert equal(weights(model), seen[2])


def test_keeps_the_last_state_if_asked(context: Contexts) -> None:
    result, model, seen = fitted(context, [3.0, 1.0, 2.0], steps=3, keep_best=False)
    assert (result.best, result.best_step) == (1.0, 3)
    assert equal(weights(model), seen[2])


def test_stops_when_it_no_longer_gets_better(context: Contexts) -> None:
    result, model, seen = fitted(context, [4.0, 3.0, 2.0, 2.5, 2.1, 1.0], steps=5, patience=2)
    assert (result.best, result.best_step, result.steps) == (2.0, 2, 4)
    assert equal(weights(model), seen[2])


def test_only_the_scope_is_trained(context: Contexts) -> None:
    model = tiny_models.tiny("llama")
    before = weights(model)
    chosen = set(model.select(Scope.of("mlp & blocks[1]")))
    Full(**SHORT, steps=2, scope=["mlp & blocks[1]"]).apply(model, context())
    for name, tensor in weights(model).items():
        assert torch.equal(tensor, before[name]) == (name.rpartition(".")[0] not in chosen), name
    assert all(parameter.requires_grad for parameter in model.module.parameters())


def test_weights_in_bf16_get_their_dtype_back(context: Contexts) -> None:
    model = tiny_models.tiny("llama", dtype=torch.bfloat16)
    before, ctx = weights(model), context(precision="bf16")
    Full(**SHORT, steps=4).apply(model, ctx)
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.bfloat16}
    assert not equal(before, weights(model))
    assert ctx.notes["precision"] == "bf16"


def test_without_a_dev_set_the_last_state_is_kept(context: Contexts) -> None:
    ctx = context(data={"train": dataset()}.__getitem__)
    Full(**SHORT, steps=2).apply(tiny_models.tiny("llama"), ctx)
    assert "loss/dev" not in ctx.curves
    assert "best" not in ctx.notes


def test_diverging_stops_at_once(context: Contexts, tmp_path: Path) -> None:
    model, ctx = tiny_models.tiny("llama"), context(scratch=tmp_path)
    step = Full(**SHORT, steps=9, checkpoint_minutes=0)
    own, calls = Objective(model), []

    def loss(batch: Any, progress: float) -> Loss:
        calls.append(progress)
        found = own(batch, progress)
        return Loss(found.value * (math.nan if len(calls) == 3 else 1), found.count, {})

    with pytest.raises(TrainingDiverged, match=r"step 3: .*learning rate .* kept in") as caught:
        fit(model, loss, stream_of(ctx.data("train"), model, step, ctx), step, ctx)
    assert "Lower learning_rate to 0.001" in str(caught.value)
    assert len(calls) == 3
    assert folders(tmp_path) == ["step-00000002"]


def exploding(
    context: Contexts, scores: list[float], at: int, times: float, **more: Any
) -> tuple[Any, Any, Model, list[Any]]:
    """A training whose loss is `times` as large from a step on, and whose evaluations are given."""
    model, ctx = tiny_models.tiny("llama"), context()
    step = Full(**{**SHORT, "evaluate_every": 2, "steps": 40, **more})
    own, told, seen = Objective(model), iter(scores), []
    calls: list[float] = []

    def loss(batch: Any, progress: float) -> Loss:
        calls.append(progress)
        value = own(batch, progress).value * (times if len(calls) > at else 1)
        return Loss(value, 1, {"task": (float(value.detach()), 1)})

    def evaluate() -> float:
        seen.append(weights(model))
        return next(told)

    result = fit(model, loss, stream_of(ctx.data("train"), model, step, ctx), step, ctx, evaluate)
    return result, ctx, model, seen


@pytest.mark.parametrize("times", [math.nan, 100.0])
def test_gone_astray_it_ends_with_the_best_state(context: Contexts, times: float) -> None:
    """It stops at the step, says so, and leaves a state that was better than the start."""
    scores = [3.0, 2.0, 1.0, 2.5, 9.0, 9.0, 9.0]
    result, ctx, model, seen = exploding(context, scores, 7, times)
    assert (result.best, result.best_step) == (1.0, 4)
    assert result.steps < 10
    assert equal(weights(model), seen[2])
    (warning,) = ctx.warnings
    assert f"astray at step {8 if math.isnan(times) else result.steps}" in warning
    assert "the state of step 4, the best on held-out data, is kept" in warning
    assert "Lower learning_rate to 0.001" in warning


@pytest.mark.parametrize("scores", [[3.0, 3.1, 3.2, 9.0, 9.0, 9.0], [math.nan, 2.0, 1.0, 9.0, 9.0]])
def test_gone_astray_without_a_better_state_it_fails(
    context: Contexts, scores: list[float]
) -> None:
    with pytest.raises(
        TrainingDiverged, match=r"task from 5\.\d+ to \d\d.*step began with is kept"
    ):
        exploding(context, scores, 5, 100.0)


def test_an_adapter_gone_astray_is_stopped_too(
    context: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees weights through views, which do not change what is to be learned."""
    plainly, calls = Objective.against, itertools.count()

    def against(self: Objective, *given: Any) -> Loss:
        found = plainly(self, *given)
        times = 100.0 if next(calls) > 8 else 1.0
        parts = {name: (value * times, count) for name, (value, count) in found.parts.items()}
        return Loss(found.value * times, found.count, parts)

    monkeypatch.setattr(Objective, "against", against)
    step = find("heal/lora").model_validate({**SHORT, "steps": 40})
    with pytest.raises(TrainingDiverged, match="astray"):
        step.apply(tiny_models.tiny("llama"), context())


def test_a_loss_that_rises_a_little_goes_on(context: Contexts) -> None:
    result, ctx, *_ = exploding(context, [3.0] + [2.0] * 20, 20, 1.8)
    assert result.steps == 40
    assert ctx.warnings == []


def test_no_state_better_than_the_start_is_told(context: Contexts) -> None:
    ctx = exploding(context, [2.0] + [3.5] * 20, 40, 1.0)[1]
    (warning,) = ctx.warnings
    assert "as good on held-out data as what it began with: 2, at best 3.5" in warning


def test_no_checkpoint_holds_what_is_no_number(context: Contexts, tmp_path: Path) -> None:
    """The update, not the loss, made it so: the step after would have seen it."""
    model, ctx = tiny_models.tiny("llama"), context(scratch=tmp_path)
    settings = {**SHORT, "learning_rate": 1e38, "optimizer": "sgd", "clip": None}
    step, own = Full(**settings, steps=5, checkpoint_minutes=0), Objective(model)

    def loss(batch: Any, progress: float) -> Loss:
        found = own(batch, progress)
        return Loss(found.value * 1e6, found.count, {})

    with pytest.raises(TrainingDiverged, match=r"step 2: the loss is nan.*step began with is kept"):
        fit(model, loss, stream_of(ctx.data("train"), model, step, ctx), step, ctx)
    assert folders(tmp_path) == []


def test_a_last_step_too_far_is_seen(context: Contexts) -> None:
    model, ctx = tiny_models.tiny("llama"), context()
    settings = {**SHORT, "learning_rate": 1e38, "optimizer": "sgd", "clip": None}
    step, own = Full(**settings, steps=1), Objective(model)

    def loss(batch: Any, progress: float) -> Loss:
        found = own(batch, progress)
        return Loss(found.value * 1e6, found.count, {})

    with pytest.raises(TrainingDiverged, match="not finite"):
        fit(model, loss, stream_of(ctx.data("train"), model, step, ctx), step, ctx)


LAST: dict[str, Any] = {"held_out": "dev", "keep_best": False}


@pytest.mark.parametrize(
    ("rate", "kept", "told"),
    [(1e-3, {"held_out": None}, 0), (3.0, {"held_out": None}, 1), (3.0, LAST, 1)],
)
def test_a_loss_that_got_worse_is_told(
    context: Contexts, rate: float, kept: dict[str, Any], told: int
) -> None:
    """It explodes, stays finite, and the last state is what is kept."""
    model, ctx = tiny_models.tiny("llama"), context()
    Full(**{**SHORT, "learning_rate": rate, "steps": 12, **kept}).apply(model, ctx)
    warnings = [text for text in ctx.warnings if "made its own loss worse: task from" in text]
    assert len(warnings) == told, ctx.curves["loss/train"]


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()]
)
def test_out_of_memory_says_what_to_write(context: Contexts, error: Exception) -> None:
    model, ctx = tiny_models.tiny("llama"), context()
    step = Full(**SHORT, steps=2)

    def loss(batch: Any, progress: float) -> Loss:
        raise error

    with pytest.raises(OutOfMemory, match="batch: 2 and accumulate: 2"):
        fit(model, loss, stream_of(ctx.data("train"), model, step, ctx), step, ctx)


def test_other_errors_are_not_hidden(context: Contexts) -> None:
    model, ctx = tiny_models.tiny("llama"), context()
    step = Full(**SHORT, steps=2)

    def loss(batch: Any, progress: float) -> Loss:
        raise RuntimeError("a shape is wrong")

    with pytest.raises(RuntimeError, match="a shape is wrong"):
        fit(model, loss, stream_of(ctx.data("train"), model, step, ctx), step, ctx)


def test_a_missing_tracker_names_its_package(
    context: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attar.train.trackers.find_spec", lambda name: None)
    ctx = context(trackers=("wandb",))
    with pytest.raises(MissingPackage, match=r"pip install 'attar\[wandb\]'"):
        Full(**SHORT, steps=1).apply(tiny_models.tiny("llama"), ctx)


def test_tensorboard_writes_to_the_folder_of_the_context(context: Contexts, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    ctx = context(trackers=("tensorboard",), logs=tmp_path)
    Full(**SHORT, steps=2).apply(tiny_models.tiny("llama"), ctx)
    assert list(tmp_path.glob("**/events.*"))


def test_held_out_data_that_judges_nothing_is_refused(context: Contexts) -> None:
    """The mean of no loss would be 0: the best that any state ever is."""
    data = {"train": dataset(), "dev": dataset("dev", 12, labeled=0)}
    ctx = context("classification", data=data.__getitem__)
    with pytest.raises(DataError, match=r"nothing in the held-out data is judged.*held_out: null"):
        Full(**SHORT, steps=4).apply(tiny_models.tiny("bert", "classification"), ctx)
    Full(**SHORT, steps=4, held_out=None).apply(tiny_models.tiny("bert", "classification"), ctx)


def test_seconds_count_the_making_of_batches(context: Contexts) -> None:
    """Of what a model writes itself they are most of the time."""
    model, ctx = tiny_models.tiny("bert", "classification"), context("classification")
    schedule = Full(**SHORT, steps=3)

    class Slow:
        rows = stream_of(ctx.data("train"), model, schedule, ctx)
        per_epoch = rows.per_epoch

        def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
            time.sleep(0.2)
            return self.rows.batch(step, rank, world)

    result = fit(model, Objective(model), Slow(), schedule, ctx)
    assert result.seconds >= 0.6
    assert ctx.notes["training_seconds"] >= 0.6
