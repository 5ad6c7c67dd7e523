"""Distillation from answers on disk: as from the teacher, which is then needed no longer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from attar.core.context import Context
from attar.data.example import Dataset, Example
from attar.errors import UserError
from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.techniques.distill.logits import Logits
from attar.train.losses import Objective, judge
from attar.train.machine import Machine
from attar.train.rows import held_out_of
from loopback import serving
from train.small import dataset, equal, weights

SHORT: dict[str, Any] = {"batch": 4, "length": 16, "steps": 12, "learning_rate": 3e-3}


def context(model: Callable[[str], Model], task: Any, home: Path, **more: Any) -> Context:
    data = {"train": dataset(), "dev": dataset("dev", 12)}
    return Context(task, data.__getitem__, model, beside=lambda name: home / name, **more)


def of(teacher: Model) -> Callable[[str], Model]:
    return lambda _: teacher


def gone(name: str) -> Model:
    raise AssertionError(f"{name} was loaded")


def trained(student: Model, ctx: Context, **settings: Any) -> dict[str, torch.Tensor]:
    Logits.model_validate({**SHORT, **settings}).apply(student, ctx)
    return weights(student)


def near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """The same but for rounding, which Adam's first steps magnify where a gradient is nothing."""
    far = torch.cat([(one[name] - other[name]).abs().flatten() for name in one])
    return float(far.quantile(0.98)) < 1e-4


def apart(student: Model, teacher: Model, ctx: Context) -> float:
    held = held_out_of("dev", student, Logits.model_validate(SHORT), ctx)
    with torch.no_grad():
        return judge(Objective(student, teacher), held, Mix("forward", 1.0, 1.0, 0.0))()


@pytest.mark.parametrize("cache", [{}, {"top": 16}, {"sampled": 32}], ids=str)
def test_learns_as_from_the_teacher_itself(cache: dict[str, int], tmp_path: Path) -> None:
    teacher = tiny_models.tiny("llama", seed=1)
    ctx = context(of(teacher), "causal-lm", tmp_path)
    live, read = tiny_models.tiny("llama"), tiny_models.tiny("llama")
    before = apart(live, teacher, ctx)
    trained(live, ctx, steps=30)
    trained(read, ctx, steps=30, cache=cache)
    assert apart(live, teacher, ctx) < 0.8 * before
    assert apart(read, teacher, ctx) == pytest.approx(apart(live, teacher, ctx), rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_later_runs_do_without_the_teacher(precision: str, tmp_path: Path) -> None:
    teacher = tiny_models.tiny("llama", seed=1)
    first = context(of(teacher), "causal-lm", tmp_path, precision=precision)
    expected = trained(tiny_models.tiny("llama"), first, cache={"top": 16})
    assert first.notes["teacher"]["rows asked"] > 0
    again = context(gone, "causal-lm", tmp_path, precision=precision)
    assert equal(trained(tiny_models.tiny("llama"), again, cache={"top": 16}), expected)
    assert again.notes["teacher"]["rows asked"] == 0
    settings: list[dict[str, Any]] = [
        {"temperature": 3.0, "steps": 2},
        {"divergence": "reverse", "weight": 0.5, "steps": 2},
        {"targets": "hard", "steps": 2},
    ]
    for more in settings:
        found = trained(tiny_models.tiny("llama"), again, cache={"top": 16}, **more)
        assert not equal(found, expected)


def test_rows_are_asked_for_once(tmp_path: Path) -> None:
    ctx = context(of(tiny_models.tiny("llama", seed=1)), "causal-lm", tmp_path)
    trained(tiny_models.tiny("llama"), ctx, steps=20, cache={"top": 8})
    found = ctx.notes["teacher"]
    assert found["rows read"] > found["rows asked"]
    other = context(gone, "causal-lm", tmp_path, seed=5)  # another order of the same rows
    trained(tiny_models.tiny("llama", seed=3), other, steps=20, cache={"top": 8})


def test_another_tokenizer_does_not_read_it(tmp_path: Path) -> None:
    ctx = context(of(tiny_models.tiny("llama", seed=1)), "causal-lm", tmp_path)
    trained(tiny_models.tiny("llama"), ctx, cache={"top": 8})
    student = tiny_models.tiny("llama")
    student.tokenizer = tiny_models.tokenizer.__wrapped__()
    student.tokenizer.add_tokens(["another"])
    with pytest.raises(UserError, match="different vocabularies"):
        trained(student, ctx, cache={"top": 8})


def test_classifiers_are_kept_whole(tmp_path: Path) -> None:
    teacher = tiny_models.tiny("bert", "classification", seed=1)
    ctx = context(of(teacher), "classification", tmp_path)
    live = trained(tiny_models.tiny("bert", "classification"), ctx, weight=0.7)
    read = trained(tiny_models.tiny("bert", "classification"), ctx, weight=0.7, cache={})
    assert near(live, read)
    again = context(gone, "classification", tmp_path)
    student = tiny_models.tiny("bert", "classification")
    assert equal(trained(student, again, weight=0.7, cache={}), read)


@pytest.mark.parametrize("cache", [{"top": 8}, {"sampled": 8}], ids=str)
def test_a_killed_training_goes_on_bit_equal(
    cache: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_models.tiny("llama", seed=1)
    settings = {"cache": cache, "checkpoint_minutes": 0}
    calm = trained(
        tiny_models.tiny("llama"), context(of(teacher), "causal-lm", tmp_path / "calm"), **settings
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    ctx = context(of(teacher), "causal-lm", tmp_path / "killed", scratch=scratch)
    whole, taken = Machine.step, 0

    def dying(machine: Machine, *args: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 6:
            raise KeyboardInterrupt
        return whole(machine, *args)

    monkeypatch.setattr(Machine, "step", dying)
    # as after a kill: what waited is not written
    monkeypatch.setattr("attar.data.teacher_cache.TeacherCache.flush", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        trained(tiny_models.tiny("llama"), ctx, **settings)
    monkeypatch.undo()
    assert equal(trained(tiny_models.tiny("llama"), ctx, **settings), calm)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"cache": {"top": 4, "sampled": 4}}, "keep one"),
        ({"cache": {"top": 4}, "divergence": "logits"}, "probabilities are"),
        ({"cache": {"top": 4}, "temperature": 0.3}, "below temperature 0.5"),
        ({"cache": {"sampled": 4}, "divergence": "reverse"}, "forward divergence alone"),
        ({"cache": {"sampled": 4}, "temperature": 2.0}, "temperature 1 alone"),
        ({"cache": {"sampled": 4}, "targets": "hard"}, "forward divergence alone"),
        ({"cache": {"top": 4}, "also": {"hidden": {}}}, "which no cache holds"),
        ({"teacher": "http://127.0.0.1:1/v1#m"}, "write cache: {top: 20}"),
    ],
)
def test_what_no_cache_can_do_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Logits.model_validate(settings)


def test_masked_language_models_are_refused(tmp_path: Path) -> None:
    ctx = context(gone, "masked-lm", tmp_path)
    with pytest.raises(UserError, match="each epoch masks other tokens"):
        trained(tiny_models.tiny("bert", "masked-lm"), ctx, cache={"top": 4})


def test_a_teacher_behind_an_address_teaches_as_at_hand(tmp_path: Path) -> None:
    teacher = tiny_models.tiny("llama", seed=1)
    here = context(of(teacher), "causal-lm", tmp_path / "here")
    expected = trained(tiny_models.tiny("llama"), here, cache={"top": 16})
    secrets = {"TEACHER_KEY": "sk-very-secret"}
    with serving() as server:
        server.reply = tiny_models.behind(teacher)
        settings = {"teacher": server.url, "cache": {"top": 16}, "server": {"key": "TEACHER_KEY"}}
        there = context(gone, "causal-lm", tmp_path / "there", secret=secrets.get)
        there.beside = lambda _: tmp_path / "there"
        found = trained(tiny_models.tiny("llama"), there, **settings)
        assert all(head["authorization"] == "Bearer sk-very-secret" for head in server.headers)
    assert near(found, expected)
    # a second run asks nobody: there is nobody
    assert equal(trained(tiny_models.tiny("llama"), there, **settings), found)
    for path in (tmp_path / "there").rglob("*.safetensors"):
        assert b"sk-very-secret" not in path.read_bytes()


def test_a_server_of_other_tokens_is_refused(tmp_path: Path) -> None:
    with serving() as server:
        server.reply = lambda path, asked: (200, {"tokens": [1, 2, 3]})
        ctx = context(gone, "causal-lm", tmp_path)
        ctx.beside = lambda _: tmp_path / "there"
        with pytest.raises(UserError, match="makes other tokens"):
            trained(tiny_models.tiny("llama"), ctx, teacher=server.url, cache={"top": 4})
        settings = {"cache": {"top": 4}, "server": {"key": "TEACHER_KEY"}}
        with pytest.raises(UserError, match="TEACHER_KEY, which is not set"):
            trained(tiny_models.tiny("llama"), ctx, teacher=server.url, **settings)


def test_a_servers_tokens_are_compared_on_more_than_a_short_first_row(tmp_path: Path) -> None:
    rows = [Example("w1"), *(Example(text) for text in tiny_models.texts(12, 24))]
    with serving() as server:
        first = tiny_models.tokenizer()("w1", add_special_tokens=False).input_ids
        server.reply = lambda path, asked: (200, {"tokens": first})
        ctx = replace(
            context(gone, "causal-lm", tmp_path), data=lambda _: Dataset("train", rows, "x")
        )
        ctx.beside = lambda _: tmp_path / "there"
        with pytest.raises(UserError, match="makes other tokens"):
            trained(tiny_models.tiny("llama"), ctx, teacher=server.url, cache={"top": 4})


def test_a_server_that_does_not_tell_its_tokens_must_be_vouched_for(tmp_path: Path) -> None:
    teacher = tiny_models.tiny("llama", seed=1)
    behind = tiny_models.behind(teacher)
    with serving() as server:
        server.reply = lambda path, asked: (
            (404, {}) if path.endswith("tokenize") else behind(path, asked)
        )
        ctx = context(gone, "causal-lm", tmp_path)
        ctx.beside = lambda _: tmp_path / "there"
        settings = {"teacher": server.url, "cache": {"top": 16}}
        with pytest.raises(UserError, match=r"does not tell its tokens .*same_tokens: yes"):
            trained(tiny_models.tiny("llama"), ctx, **settings)
        found = trained(
            tiny_models.tiny("llama"), ctx, **settings, server={"same_tokens": True, "tries": 1}
        )
    here = context(of(teacher), "causal-lm", tmp_path / "here")
    assert near(found, trained(tiny_models.tiny("llama"), here, cache={"top": 16}))
