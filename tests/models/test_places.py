"""How long a text may be: as many tokens as the model's table has positions for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import attar
import tiny_models
from attar.core.context import Context
from attar.core.registry import find
from attar.core.step import Task
from attar.data.example import Example
from attar.errors import UserError
from attar.models import save
from attar.models.places import length_for, places_of
from attar.train.asking import Asked
from train.small import dataset

TABLES = [("bert", 64), ("roberta", 63), ("electra", 64), ("distilbert", 64), ("gpt2", 64)]


def ids(length: int) -> torch.Tensor:
    return torch.full((1, length), 9)


@pytest.mark.parametrize(("kind", "most"), TABLES)
def test_a_table_of_positions_ends(kind: str, most: int) -> None:
    model = tiny_models.tiny(kind, max_position_embeddings=64)
    assert places_of(model) == most
    assert length_for(model, most) == most
    with torch.no_grad():
        model.module(input_ids=ids(most))
        with pytest.raises((RuntimeError, IndexError)):  # what is told beforehand
            model.module(input_ids=ids(most + 1))
    words = rf"{most + 1} tokens .* {most} positions.* length: {most}"
    with pytest.raises(UserError, match=words):
        length_for(model, most + 1)


@pytest.mark.parametrize("kind", ["llama", "modernbert"])
def test_positions_that_are_computed_do_not(kind: str) -> None:
    model = tiny_models.tiny(kind, max_position_embeddings=64)
    assert places_of(model) is None
    assert length_for(model, 1 << 20) == 1 << 20


@pytest.mark.parametrize(
    ("kind", "model", "task"),
    [
        ("distill/logits", "gpt2", "causal-lm"),
        ("distill/on-policy", "gpt2", "causal-lm"),
        ("distill/sequence", "gpt2", "causal-lm"),
        ("quantize/gptq", "bert", "masked-lm"),
        ("adapt/pretrain", "bert", "masked-lm"),
    ],
)
def test_sequences_that_are_longer_are_refused(kind: str, model: str, task: Task) -> None:
    pressed = tiny_models.tiny(model, task, max_position_embeddings=64)
    ctx = Context(task, lambda _: dataset(), lambda _: pressed)
    more = {"next_sentence": 0} if kind == "adapt/pretrain" else {}
    with pytest.raises(UserError, match="72 tokens do not fit the model, which has 64 positions"):
        find(kind).model_validate({"length": 72, **more}).apply(pressed, ctx)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("distill/logits", {}),
        ("distill/logits", {"cache": {"top": 4}}),
        ("distill/hidden", {}),
        ("distill/online", {}),
        ("distill/multi-teacher", {"teachers": ["one", "two"]}),
        ("distill/sequence", {"also": {"hidden": {}}, "new_tokens": 4}),
    ],
)
def test_texts_that_are_too_long_for_the_teacher_are_refused(
    kind: str, settings: dict[str, object]
) -> None:
    student = tiny_models.tiny("gpt2", max_position_embeddings=128)
    teacher = tiny_models.tiny("gpt2", max_position_embeddings=64)
    ctx = Context("causal-lm", lambda _: dataset(), lambda _: teacher)
    with pytest.raises(UserError, match=r"up to 72 tokens do not fit the teacher.* Set length: 64"):
        find(kind).model_validate({"length": 72, **settings}).apply(student, ctx)


def test_a_teacher_that_is_asked_is_shown_what_fits() -> None:
    ctx = Context("classification", lambda _: dataset(), lambda _: None)
    asked = Asked(
        tiny_models.tiny("bert", "classification", max_position_embeddings=64), ctx, 4, 72
    )
    assert asked.classes(["w1 w2 " * 50]).shape == (1, len(tiny_models.LABELS))
    writer = tiny_models.tiny("gpt2", max_position_embeddings=64)
    assert len(Asked(writer, ctx, 4, 72).nats(["w1 w2 " * 50])) == 1


@pytest.mark.parametrize("kind", ["adapt/full", "quantize/gptq"])
def test_texts_that_are_longer_are_cut(kind: str) -> None:
    pressed = tiny_models.tiny("bert", "classification", max_position_embeddings=64)
    long = Example("w1 w2 " * 50, tiny_models.LABELS[0])
    data = replace(dataset(), examples=[*dataset().examples, long])
    ctx = Context("classification", lambda _: data, lambda _: pressed)
    more = {"steps": 14, "batch": 4, "held_out": None} if kind == "adapt/full" else {}
    find(kind).model_validate({"length": 72, **more}).apply(pressed, ctx)


def test_a_run_cuts_what_it_measures_on(tmp_path: Path) -> None:
    save(tiny_models.tiny("bert", "classification", max_position_embeddings=64), tmp_path / "m")
    label = tiny_models.LABELS[0]
    for name in ("train", "test"):
        (tmp_path / f"{name}.tsv").write_text(f"{'w1 w2 ' * 50}\t{label}\n{name} w3\t{label}\n")
    done = attar.run(
        {
            "model": str(tmp_path / "m"),
            "data": {name: str(tmp_path / f"{name}.tsv") for name in ("train", "test")},
            "steps": [{"quantize/rtn": {"grid": "int8-channel"}}],
            "measures": {"length": 72, "speed": False},
        },
        home=tmp_path / "home",
    )
    assert done.report.finished
