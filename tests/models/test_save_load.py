"""Saved models reload bit-equal: through Attar, and through plain transformers."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from attar.core.keys import FileHashes
from attar.core.recipe import ModelSource
from attar.layers import QuantizedEmbedding, TiedHead
from attar.models import load, resolve, save, skeleton
from attar.models.load import config_of, load_tokenizer
from attar.models.source import Files
from tiny_models import LABELS, PAIRS, batch, logits, press, tiny

every = pytest.mark.parametrize(("family", "task"), PAIRS)
_AUTO = {
    "causal-lm": transformers.AutoModelForCausalLM,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "classification": transformers.AutoModelForSequenceClassification,
}


def _again(folder: Path):
    return load(ModelSource(path=str(folder)))


def _round_trip(model, folder: Path) -> None:
    expected = logits(model)
    save(model, folder)
    again = _again(folder)
    assert again.task == model.task
    assert again.labels == model.labels
    assert torch.equal(logits(again), expected)
    plain = _AUTO[model.task].from_pretrained(folder).eval()
    given = batch(model)
    with torch.no_grad():
        found = plain(input_ids=given.input_ids, attention_mask=given.attention_mask).logits
    if model.task != "classification":
        found = found[given.attention_mask.bool()]
    assert torch.equal(found, expected)
    state, new = model.module.state_dict(), again.module.state_dict()
    assert state.keys() == new.keys()
    assert all(torch.equal(state[name], new[name]) for name in state)
    empty = skeleton(config_of(resolve(ModelSource(path=str(folder)))), model.task)
    assert empty.facts() == model.facts() == again.facts()
    assert empty.module.device.type == "meta"
    assert empty.parameters_count() == model.parameters_count() == again.parameters_count()


@every
def test_plain(family, task, tmp_path) -> None:
    _round_trip(tiny(family, task), tmp_path)


@every
def test_quantized(family, task, tmp_path) -> None:
    model = press(tiny(family, task))
    plain = logits(tiny(family, task))
    assert torch.corrcoef(torch.stack([logits(model).flatten(), plain.flatten()]))[0, 1] > 0.6
    _round_trip(model, tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt2"])
def test_bfloat16(family, tmp_path) -> None:
    _round_trip(press(tiny(family, dtype=torch.bfloat16)), tmp_path)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_factor_of_gemmas_embedding_is_exact(family, dtype) -> None:
    model = tiny(family, dtype=dtype)
    table = model.module.get_input_embeddings()
    pressed = press(tiny(family, dtype=dtype))
    new = pressed.module.get_input_embeddings()
    assert isinstance(new, QuantizedEmbedding)
    with torch.no_grad():
        table.weight.copy_(new.dequantized(dtype))
    ids = torch.arange(100)
    assert torch.equal(new(ids), table(ids))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_decoders_bias_stays_tied(family, tmp_path) -> None:
    model = press(tiny(family))
    head = model.module.get_output_embeddings()
    assert isinstance(head, TiedHead)
    save(model, tmp_path)
    for one in (model, _again(tmp_path)):
        owner = one.module.cls.predictions if family == "bert" else one.module.lm_head
        assert owner.decoder.bias is owner.bias
        with torch.no_grad():
            owner.bias += 1.0
        given = batch(one)
        with torch.no_grad():
            shifted = one.logits(given)
            owner.bias -= 1.0
            torch.testing.assert_close(shifted, one.logits(given) + 1.0, atol=1e-4, rtol=1e-4)


def test_a_tied_table_is_written_once(tmp_path) -> None:
    model = tiny("llama")
    save(model, tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    again = _again(tmp_path).module
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_a_head_that_left_its_table_is_written_too(tmp_path) -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.module.lm_head.weight = torch.nn.Parameter(model.module.lm_head.weight + 1.0)
    save(model, tmp_path)
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")


def test_files_can_be_read_by_others(tmp_path) -> None:
    save(tiny("llama"), tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_saving_leaves_the_live_config_alone(tmp_path) -> None:
    model = press(tiny("llama"))
    save(model, tmp_path)
    assert not hasattr(model.config, "quantization_config")


def test_a_fresh_head_is_drawn_from_the_seed(tmp_path) -> None:
    save(tiny("bert", "masked-lm"), tmp_path)
    source = ModelSource(path=str(tmp_path))
    before = torch.random.get_rng_state()
    one, same, other = (load(source, "classification", LABELS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [model.module.classifier.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert one.labels == LABELS
    assert one.config.id2label == dict(enumerate(LABELS))


def test_dtype_is_as_asked(tmp_path) -> None:
    save(tiny("llama", dtype=torch.bfloat16), tmp_path)
    auto, wide = (load(ModelSource(path=str(tmp_path), dtype=d)) for d in ("auto", "float32"))
    assert next(auto.module.parameters()).dtype == torch.bfloat16
    assert next(wide.module.parameters()).dtype == torch.float32


def test_all_that_changes_what_is_read_is_in_a_models_key(tmp_path: Path) -> None:
    folder, hashes = tmp_path / "model", FileHashes(tmp_path / "hashes.json")
    save(tiny("bert", "masked-lm"), folder)
    seen = [resolve(ModelSource(path=str(folder))).content(hashes)]
    (folder / "1_Pooling").mkdir()
    for name in ("1_Pooling/config.json", "chat_template.jinja", "source.spm"):
        for text in ("one", "other"):
            (folder / name).write_text(text)
            seen.append(resolve(ModelSource(path=str(folder))).content(hashes))
    assert len(set(seen)) == 7


def test_a_tokenizer_is_read_where_no_config_is(tmp_path) -> None:
    model = tiny("llama")
    model.tokenizer.save_pretrained(tmp_path)  # as an export for another engine lies there
    assert not (tmp_path / "config.json").exists()
    found = load_tokenizer(Files(tmp_path))
    assert found.get_vocab() == model.tokenizer.get_vocab()


def test_several_threads_load_at_once(tmp_path: Path) -> None:
    """transformers swaps what is the process's as it loads: none may find another's there."""
    for name, family in (("a", "llama"), ("b", "bert"), ("c", "gpt2")):
        save(tiny(family), tmp_path / name)
    names = ["a", "b", "c"] * 4
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(lambda name: _again(tmp_path / name), names))
    for name, model in zip(names, loaded, strict=True):
        assert torch.equal(logits(model), logits(_again(tmp_path / name)))
    assert torch.get_default_dtype() == torch.float32
