"""What texts are padded with: a decoder that classifies finds a text's end by its config's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny_models
from attar.data.batches import held_out
from attar.data.example import Dataset, Example
from attar.models import Files, load, save
from attar.models.padding import filler

TEXTS = ["w1 w2 w3", "w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14", "w3 w2"]


def answers(model: Any, texts: list[str], together: int) -> torch.Tensor:
    """Logits of texts that run so many at a time."""
    data = Dataset("d", [Example(text) for text in texts], "f")
    batches = held_out(data, model.tokenizer, "classification", 32, together, None)
    with torch.no_grad():
        return torch.cat([model.logits(batch) for batch in batches])


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "llama"])
@pytest.mark.parametrize("own", [0, 4, 50, None, -1])
def test_a_text_is_classified_as_alone_whatever_the_config_pads_with(kind, own, tmp_path) -> None:
    model = tiny_models.tiny(kind, "classification")
    model.module.config.pad_token_id = own
    save(model, tmp_path / "m")
    found = load(Files(tmp_path / "m"))
    config = found.module.config
    assert config.pad_token_id == filler(found.tokenizer) == (4 if own == 4 else 0)
    alone = answers(found, TEXTS, 1)
    torch.testing.assert_close(answers(found, TEXTS, 3), alone)
    # what transformers itself answers to one text without any padding
    for text, row in zip(TEXTS, alone, strict=True):
        ids = found.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            torch.testing.assert_close(found.module(input_ids=ids).logits[0], row)


def test_it_stays_so_when_it_is_saved(tmp_path) -> None:
    model = tiny_models.tiny("qwen3", "classification")
    model.module.config.pad_token_id = 4
    save(model, tmp_path / "m")
    save(load(Files(tmp_path / "m")), tmp_path / "again")
    again = load(Files(tmp_path / "again"))
    assert again.tokenizer.pad_token_id == again.module.config.pad_token_id == 4
    assert again.tokenizer("w1 w2").input_ids == model.tokenizer("w1 w2").input_ids


def test_other_models_keep_what_they_are_padded_with(tmp_path) -> None:
    for kind, task in (("bert", "classification"), ("qwen3", "causal-lm")):
        model = tiny_models.tiny(kind, task)
        model.module.config.pad_token_id = 50
        save(model, tmp_path / kind)
        found = load(Files(tmp_path / kind))
        assert (found.module.config.pad_token_id, found.tokenizer.pad_token_id) == (50, 0)
