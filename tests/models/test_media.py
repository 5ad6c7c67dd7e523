"""Models that see or hear: saved and loaded, what is told of their modules, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import tiny_media
import tiny_models
from attar.core.recipe import ModelSource
from attar.errors import ModelError
from attar.models import load, save
from attar.models.media import paired
from attar.models.source import Files


@pytest.mark.parametrize(("model_type", "task"), tiny_media.MODELS)
def test_it_reloads_bit_equal_with_its_processor(model_type, task, tmp_path):
    model = tiny_media.tiny(model_type)
    save(model, tmp_path)
    again = load(Files(tmp_path))
    assert (again.task, again.labels) == (task, model.labels)
    assert torch.equal(tiny_media.outputs(again), tiny_media.outputs(model))
    assert type(again.tokenizer) is type(model.tokenizer)
    assert again.facts() == model.facts()


@pytest.mark.parametrize("model_type", ["vit", "audio-spectrogram-transformer"])
def test_every_linear_of_a_block_has_its_part(model_type):
    facts = [fact for fact in tiny_media.tiny(model_type).facts() if fact.linear]
    inside = [fact.role for fact in facts if fact.block is not None]
    assert inside == ["attention"] * 4 + ["mlp"] * 2 + ["attention"] * 4 + ["mlp"] * 2


def test_blocks_are_numbered_on_from_tower_to_tower():
    model = tiny_media.tiny("clip")
    facts = model.facts()
    towers = {fact.block: fact.name.partition(".")[0] for fact in facts if fact.block is not None}
    assert towers == {0: "text_model", 1: "text_model", 2: "vision_model", 3: "vision_model"}
    assert len(model.blocks) == 4
    inside = [fact for fact in facts if fact.block is not None and fact.linear]
    assert {fact.role for fact in inside} == {"attention", "mlp"}
    assert len(inside) == 4 * 6


def test_similarities_are_those_of_transformers():
    model = tiny_media.tiny("clip")
    with torch.no_grad():
        pair = paired(model, tiny_media.batch(model))
    found = pair.scale * pair.seen @ pair.read.t()
    assert torch.allclose(found, tiny_media.outputs(model), atol=1e-5)


def test_a_fresh_classifier_of_images_is_drawn_from_the_seed(tmp_path):
    save(tiny_media.tiny("vit"), tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    source = ModelSource(path=str(tmp_path), fresh=True)
    one, same, other = (load(source, "classification", ("a", "b"), seed) for seed in (1, 1, 2))
    assert one.labels == ("a", "b")
    assert tiny_media.outputs(one).shape == (3, 2)
    assert torch.equal(tiny_media.outputs(one), tiny_media.outputs(same))
    assert not torch.equal(tiny_media.outputs(one), tiny_media.outputs(other))


@pytest.mark.parametrize(
    ("model_type", "task", "said"),
    [
        ("vit", "causal-lm", "but for classification"),
        ("vit", "contrastive", "but for classification"),
        ("clip", "embedding", "but for contrastive"),
    ],
)
def test_another_task_is_refused(model_type, task, said, tmp_path):
    save(tiny_media.tiny(model_type), tmp_path)
    with pytest.raises(ModelError, match=said):
        load(Files(tmp_path), task)


def test_two_towers_are_not_made_of_a_text_model(tmp_path):
    save(tiny_models.tiny("bert"), tmp_path)
    with pytest.raises(ModelError, match="not for contrastive, but for text"):
        load(Files(tmp_path), "contrastive")


def test_a_missing_processor_is_told(tmp_path):
    save(tiny_media.tiny("vit"), tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"preprocessor_config\.json.*Copy the model's own"):
        load(Files(tmp_path))


def test_a_processor_of_another_size_is_told(tmp_path):
    save(tiny_media.tiny("vit"), tmp_path)
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "size": {"height": 32, "width": 32}}))
    with pytest.raises(ModelError, match=r"shape \[3, 32, 32\].*takes \[3, 16, 16\]"):
        load(Files(tmp_path))


def test_a_damaged_processor_is_told(tmp_path: Path):
    save(tiny_media.tiny("audio-spectrogram-transformer"), tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load(Files(tmp_path))


def test_what_is_saved_loads_without_attar(tmp_path):
    model = tiny_media.tiny("vit")
    save(model, tmp_path)
    plain = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = plain(**model.given(tiny_media.batch(model))).logits
    assert torch.equal(found, tiny_media.outputs(model))
