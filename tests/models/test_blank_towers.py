"""A fresh CLIP: its tokenizer ends texts where its tower reads them, and it can be loaded."""

from __future__ import annotations

import torch

import tiny_media
from attar.core.recipe import ModelSource
from attar.models import load
from attar.models.blank import blank_towers

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def test_a_text_ends_where_its_vector_is_read(tmp_path):
    texts = ["a photo of a boot", "a photo of a shirt"]
    image = {**SIZES, "patch_size": 4}
    blank_towers(tmp_path, texts, 8, {**SIZES, "max_position_embeddings": 12}, image, width=6)
    model = load(ModelSource(path=str(tmp_path), fresh=True), seed=3)
    assert model.task == "contrastive"
    words = model.tokenizer.tokenizer
    assert words.model_max_length == 12
    one, longer = words(texts[0]).input_ids, words(texts[0] + " boot" * 20, truncation=True)
    assert one[-1] == longer.input_ids[-1] == model.config.text_config.eos_token_id
    padded = words(texts, padding="max_length", max_length=12, return_tensors="pt")
    batch = tiny_media.batch(model, 2)
    batch.input_ids, batch.attention_mask = padded.input_ids, padded.attention_mask
    with torch.no_grad():
        found = model.module(**model.given(batch)).text_embeds
        batch.input_ids = padded.input_ids[:, : len(one)]
        batch.attention_mask = padded.attention_mask[:, : len(one)]
        short = model.module(**model.given(batch)).text_embeds
    assert torch.allclose(found, short, atol=1e-6)
    assert not torch.allclose(found[0], found[1])
