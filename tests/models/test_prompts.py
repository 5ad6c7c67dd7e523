"""A prompt that begins as a text says what the text says: that is told without any formula."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

import attar.transformers  # noqa: F401  (from_pretrained then knows prompts)
import tiny_models
from attar.layers import swap
from attar.models import Model, load, save
from attar.models.prompts import NAME, Prefix, Prompt, SoftPrompt, embeddings_of, keys_and_values_of
from attar.models.source import Files

FIRST = torch.tensor([11, 7, 33, 50])


def prompted(kind: str, model_type: str = "llama") -> tuple[Model, Model]:
    """A tiny model, and the same one with a prompt that says FIRST."""
    plain, model = tiny_models.tiny(model_type), tiny_models.tiny(model_type)
    prompt: Prompt
    if kind == "soft":
        start = embeddings_of(model.module, FIRST)
        prompt = SoftPrompt(*start.shape).fill(start)
    else:
        sizes = model.sizes
        prompt = Prefix(len(FIRST), len(model.blocks), sizes.keys, sizes.head)
        prompt.fill(keys_and_values_of(model.module, FIRST))
    swap(model.module, NAME, prompt)
    return plain, model


def after_first(plain: Model, ids: Tensor) -> Tensor:
    """The plain model's logits of ids that come after FIRST."""
    whole = torch.cat([FIRST.expand(len(ids), -1), ids], 1)
    with torch.no_grad():
        return plain.module(input_ids=whole).logits[:, len(FIRST) :]


@pytest.mark.parametrize("model_type", tiny_models.DECODERS)
@pytest.mark.parametrize("kind", ["soft", "prefix"])
def test_a_prompt_of_a_text_is_that_text(kind: str, model_type: str) -> None:
    plain, model = prompted(kind, model_type)
    batch = tiny_models.batch(plain, rows=2, length=9)
    expected = after_first(plain, batch.input_ids)
    with torch.no_grad():
        whole = model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        by_parts = model.logits(batch)
    torch.testing.assert_close(whole.logits, expected, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(by_parts, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mistral", "gemma3_text"])
@pytest.mark.parametrize("kind", ["soft", "prefix"])
def test_it_writes_as_after_that_text(kind: str, model_type: str) -> None:
    plain, model = prompted(kind, model_type)
    ids = tiny_models.batch(plain, rows=2, length=6).input_ids
    first = torch.cat([FIRST.expand(2, -1), ids], 1)
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    settings["pad_token_id"] = 0
    expected = plain.module.generate(input_ids=first, **settings)[:, first.shape[1] :]
    found = model.module.generate(input_ids=ids, **settings)[:, 6:]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["soft", "prefix"])
def test_padding_on_the_left_changes_nothing(kind: str) -> None:
    _, model = prompted(kind)
    ids = tiny_models.batch(model, rows=1, length=6).input_ids
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.ones_like(ids)], 1)
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    settings["pad_token_id"] = 0
    one = model.module.generate(input_ids=ids, **settings)[:, 6:]
    other = model.module.generate(input_ids=padded, attention_mask=mask, **settings)[:, 9:]
    assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["soft", "prefix"])
def test_peft_computes_the_same(kind: str) -> None:
    plain, model = prompted(kind)
    settings: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": len(FIRST)}
    cls = peft.PromptTuningConfig if kind == "soft" else peft.PrefixTuningConfig
    theirs = peft.get_peft_model(plain.module, cls(**settings))
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(model.module.prompt.weight)
    batch = tiny_models.batch(model, rows=2, length=9)
    with torch.no_grad():
        expected = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        found = model.logits(batch)
    torch.testing.assert_close(found, expected[:, -9:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["soft", "prefix"])
def test_it_reloads_bit_equal_with_attar_and_with_transformers(kind: str, tmp_path: Path) -> None:
    _, model = prompted(kind)
    expected = tiny_models.logits(model)
    save(model, tmp_path)
    assert torch.equal(tiny_models.logits(load(Files(tmp_path))), expected)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    given = tiny_models.batch(model)
    with torch.no_grad():
        found = plain(input_ids=given.input_ids, attention_mask=given.attention_mask).logits
    assert torch.equal(found[given.attention_mask.bool()], expected)


@pytest.mark.parametrize("kind", ["soft", "prefix"])
def test_a_copy_has_a_prompt_of_its_own(kind: str) -> None:
    _, model = prompted(kind)
    expected = tiny_models.logits(model)
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        model.module.prompt.weight.zero_()
    assert torch.equal(tiny_models.logits(Model(module, model.tokenizer, model.task)), expected)
    assert not torch.equal(tiny_models.logits(model), expected)
