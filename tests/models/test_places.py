"""How long a text may be: as many tokens as the model's table has positions for."""

from __future__ import annotations

import pytest
import torch

import tiny_models
from attar.core.context import Context
from attar.core.registry import find
from attar.errors import UserError
from attar.measure.quality import judge
from attar.models.places import check_length, places_of
from train.small import dataset

TABLES = [("bert", 64), ("roberta", 63), ("electra", 64), ("distilbert", 64), ("gpt2", 64)]


def ids(length: int) -> torch.Tensor:
    return torch.full((1, length), 9)


@pytest.mark.parametrize(("kind", "most"), TABLES)
def test_a_table_of_positions_ends(kind: str, most: int) -> None:
    model = tiny_models.tiny(kind, max_position_embeddings=64)
    assert places_of(model) == most
    check_length(model, most)
    with torch.no_grad():
        model.module(input_ids=ids(most))
        with pytest.raises((RuntimeError, IndexError)):  # what is told beforehand
            model.module(input_ids=ids(most + 1))
    with pytest.raises(UserError, match=rf"{most + 1} tokens .* {most} positions.* length: {most}"):
        check_length(model, most + 1)


@pytest.mark.parametrize("kind", ["llama", "modernbert"])
def test_positions_that_are_computed_do_not(kind: str) -> None:
    model = tiny_models.tiny(kind, max_position_embeddings=64)
    assert places_of(model) is None
    check_length(model, 1 << 20)


@pytest.mark.parametrize(
    ("kind", "model", "task"),
    [
        ("adapt/full", "bert", "classification"),
        ("distill/logits", "gpt2", "causal-lm"),
        ("quantize/gptq", "bert", "masked-lm"),
    ],
)
def test_a_step_whose_texts_are_longer_is_refused(kind: str, model: str, task) -> None:
    """Also where no text is so long: the first that is may come hours later."""
    pressed = tiny_models.tiny(model, task, max_position_embeddings=64)
    ctx = Context(task, lambda _: dataset(), lambda _: pressed)
    with pytest.raises(UserError, match="72 tokens do not fit the model, which has 64 positions"):
        find(kind).model_validate({"length": 72}).apply(pressed, ctx)


def test_so_is_a_measure_with_longer_texts() -> None:
    model = tiny_models.tiny("bert", max_position_embeddings=64)
    with pytest.raises(UserError, match="64 positions"):
        judge(model, [tiny_models.batch(model, length=72)])
