"""Encoders in GGUF: the very codes, the pieces of words, and a vector for each text."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import normalizers

import attar
from attar.core.grid import Grid
from attar.errors import AttarError, ExportError, ModelError
from attar.export.export import Wanted
from attar.export.gguf import Gguf
from attar.export.prepare import refuse
from attar.layers import QuantizedLinear, swap
from attar.models import Model, save
from attar.models.pooling import POOLING_KEY, pooled
from attar.ops.rounding import fit_scales, quantize
from attar.runtimes import find
from attar.runtimes._gguf import gguf_name, module_name
from attar.runtimes.runtime import Encoder
from attar.serve.locating import Place
from attar.serve.memory import text_bytes
from attar.serve.opening import open_model
from attar.serve.settings import Settings, Source
from export.decoders import TEXT, byte_level, decoder
from export.encoders import ROWS, encoder, pieces
from export.test_gguf import written
from serve.fakes import REAL, running
from tiny_models import press

gguf = pytest.importorskip("gguf")


def test_names_are_those_of_the_package_and_lead_back() -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, 3)
    for name, _ in encoder().module.named_parameters():
        module = name.rpartition(".")[0]
        if module != "pooler.dense":
            assert gguf_name(module, "bert") == names.get_name(module)
            assert module_name(gguf_name(module, "bert"), "bert") == module


def test_the_tokenizer_is_inside(tmp_path: Path) -> None:
    fields = gguf.GGUFReader(written(encoder(), tmp_path)).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    for token, id_ in pieces().get_vocab().items():
        if token in pieces().all_special_tokens:
            assert tokens[id_] == token
        else:
            assert tokens[id_] == (token[2:] if token.startswith("##") else "\u2581" + token)
    assert fields["tokenizer.ggml.model"].contents() == "bert"
    assert fields["tokenizer.ggml.bos_token_id"].contents() == pieces().cls_token_id
    assert fields["bert.pooling_type"].contents() == 1
    assert fields["bert.attention.causal"].contents() is False


@pytest.mark.parametrize("pool", ["mean", "first", "last"])
@pytest.mark.parametrize("grid", [None, "int8-g32"])
def test_llama_cpp_makes_the_same_vectors(grid: str | None, pool: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = encoder() if grid is None else press(encoder(), grid, "int8-g32")
    setattr(model.config, POOLING_KEY, pool)
    written(model, tmp_path)
    both = pieces()(TEXT, padding=True, return_tensors="pt")
    mask = both.attention_mask
    with torch.no_grad():
        states = model.module(input_ids=both.input_ids, attention_mask=mask).last_hidden_state
    wanted = pooled(states, mask.bool(), pool).numpy()  # pyright: ignore[reportArgumentType]
    with find("llama-cpp").open(tmp_path, threads=1) as opened:
        assert isinstance(opened, Encoder)
        found = opened.run(both.input_ids.numpy(), mask.numpy())
        alone = opened.run(both.input_ids[:1].numpy(), mask[:1].numpy())
        assert opened.tokens(TEXT[1]) == pieces()(TEXT[1], add_special_tokens=False).input_ids
    bound = 0.01 if grid is None else 0.05  # it rounds inputs to 8 bits, GELU to 16
    assert np.abs(found - wanted).mean() < bound * wanted.std()
    np.testing.assert_allclose(alone[0], found[0], atol=1e-4)


def test_exported_verified_and_served(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = press(encoder(), "int8-g32", "int8-g32")
    setattr(model.config, POOLING_KEY, "first")
    save(model, tmp_path / "pressed")
    done = attar.export(
        tmp_path / "pressed", "gguf", tmp_path / "out", tmp_path, Wanted(speed=False, threads=1)
    )
    assert done.outputs["texts_tokenized_alike"] == 1
    assert done.outputs["median_difference"] < 0.02 * done.outputs["spread"]
    assert "agreement" not in done.outputs
    assert "--embedding" in (done.folder / "README.md").read_text("utf-8")
    import openai

    settings = Settings(models=(Source(name="pressed", path=str(done.folder)),))
    with running(settings, REAL) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        described = client.models.retrieve("pressed").model_extra or {}
        found = client.embeddings.create(model="pressed", input=TEXT).data
    assert described["engine"] == "llama-cpp"
    for text, item in zip(TEXT, found, strict=True):
        ids = pieces()(text, return_tensors="pt").input_ids
        with torch.no_grad():
            state = model.module(input_ids=ids).last_hidden_state[0, 0].numpy()
        cosine = float(np.dot(item.embedding, state) / np.linalg.norm(state))
        assert cosine > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_many_texts_and_the_longest(dtype: torch.dtype, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = encoder(dtype=dtype)
    written(model, tmp_path)
    longest = model.config.max_position_embeddings
    draw = np.random.default_rng(0)
    ids = draw.integers(5, ROWS, (11, longest))
    mask = np.arange(longest) < draw.integers(2, longest, (11, 1))
    mask[3] = True
    with find("llama-cpp").open(tmp_path, threads=1) as opened:
        assert isinstance(opened, Encoder)
        assert opened.context == longest
        found = opened.run(ids, mask.astype(np.int64))
        with pytest.raises(AttarError, match=r"llama\.cpp"):
            opened.run(np.zeros((1, longest + 1), np.int64), np.ones((1, longest + 1), np.int64))
        again = opened.run(ids, mask.astype(np.int64))
    with torch.no_grad():
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        states = model.module.float()(**given).last_hidden_state
    wanted = pooled(states, torch.tensor(mask), "mean").numpy()
    assert np.abs(found - wanted).mean() < 0.01 * wanted.std()
    np.testing.assert_allclose(found, again, atol=1e-2)  # who is run together may differ


@pytest.mark.parametrize("said", [None, 0, 4])
def test_files_of_encoders_from_elsewhere(said: int | None, tmp_path: Path) -> None:
    """Without a pooling the mean is meant; those that rank texts make no vectors."""
    pytest.importorskip("xllamacpp")
    model = encoder()
    path = written(model, tmp_path)
    (tmp_path / "config.json").unlink()
    pieces().save_pretrained(tmp_path)
    key, data = b"bert.pooling_type" + struct.pack("<I", 4), bytearray(path.read_bytes())
    at = data.index(key)
    if said is None:
        data[at : at + len(b"bert.pooling_type")] = b"bert.another_type"  # nothing of it
    else:
        struct.pack_into("<I", data, at + len(key), said)
    path.write_bytes(data)
    settings = Settings(models=(Source(name="m", path=str(path)),))
    place = Place(tmp_path, "llama-cpp", 0)
    assert text_bytes(place, settings.models[0], settings) == 0
    if said == 4:
        with pytest.raises(ModelError, match="makes no vectors"):
            open_model(settings.models[0], settings)
        return
    loaded = open_model(settings.models[0], settings)
    assert (loaded.task, loaded.context) == ("embedding", model.config.max_position_embeddings)
    assert loaded.encoder is not None
    ids = pieces()(TEXT[0]).input_ids
    (found,) = (future.result(30) for future in loaded.encoder.submit([ids]))
    with torch.no_grad():
        wanted = model.module(torch.tensor([ids])).last_hidden_state.mean(1)[0].numpy()
    loaded.close()
    assert float(found @ wanted) / np.linalg.norm(wanted) > 0.999


def test_what_llama_cpp_would_do_otherwise_is_refused() -> None:
    def with_tokenizer(change: Callable[[Any], None]) -> Model:
        changed = copy.deepcopy(pieces())
        change(changed)
        return Model(encoder().module, changed, "embedding")

    def cased(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)

    def whole_chinese(tokenizer: Any) -> None:
        plain = normalizers.BertNormalizer(handle_chinese_chars=False)
        tokenizer.backend_tokenizer.normalizer = plain

    def nameless(tokenizer: Any) -> None:
        tokenizer.sep_token = None

    def twice(tokenizer: Any) -> None:
        inner = next(token for token in tokenizer.get_vocab() if token.startswith("##"))
        tokenizer.add_tokens([inner.removeprefix("##")])

    letters = Model(encoder().module, byte_level(), "embedding")
    for wrong, words in (
        (with_tokenizer(cased), "makes letters small and plain"),
        (with_tokenizer(whole_chinese), "cuts at punctuation and Chinese"),
        (with_tokenizer(nameless), "does not name a first, a last"),
        (with_tokenizer(twice), "two of its tokens are the same in GGUF"),
        (letters, "is a BPE"),
        (pooler_on_a_grid(), r"pooler\.dense is on a grid"),
        (encoder(hidden_act="relu"), "its activation is relu"),
        (encoder(is_decoder=True), "its tokens see those before them alone"),
        (Model(decoder().module, pieces(), "causal-lm"), "is a WordPiece"),
    ):
        with pytest.raises(ExportError, match=words):
            refuse(wrong, Gguf(), allow_rounding=False)


def pooler_on_a_grid() -> Model:
    """An encoder of which the one linear that no vector is read from has codes."""
    model, grid = encoder(), Grid.parse("int8-g32")
    linear = model.module.pooler.dense
    weight = linear.weight.detach()
    new = QuantizedLinear(*weight.shape, grid, linear.bias)
    swap(model.module, "pooler.dense", new.fill(quantize(weight, fit_scales(weight, grid), grid)))
    return model


@pytest.mark.parametrize("text", ["Ünïted: 12,5 % of 中文字", "don't", "a-b_c [x]"])
def test_llama_cpp_reads_as_the_tokenizer_does(text: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    written(encoder(), tmp_path)
    with find("llama-cpp").open(tmp_path, threads=1) as opened:
        assert opened.tokens(text) == pieces()(text, add_special_tokens=False).input_ids
