"""Encoders in GGUF: the very codes, the pieces of words, and a vector for each text."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import normalizers

import attar
from attar.errors import ExportError
from attar.export.export import Wanted
from attar.export.gguf import FILE, Gguf
from attar.export.prepare import refuse
from attar.export.target import stored
from attar.models import Model, save
from attar.models.pooling import POOLING_KEY, pooled
from attar.runtimes import find
from attar.runtimes._gguf import gguf_name, module_name, read_gguf
from attar.runtimes.runtime import Encoder
from attar.serve.settings import Settings, Source
from export.decoders import TEXT
from export.encoders import encoder, pieces
from serve.fakes import REAL, running
from tiny_models import press

gguf = pytest.importorskip("gguf")


def written(model: Model, folder: Path) -> Path:
    refuse(model, Gguf(), allow_rounding=False)
    Gguf().write(model, folder)
    return folder / FILE


@pytest.mark.parametrize("grid", ["int4-g32", "int4-g64-min", "int3-g32", "int8-channel"])
def test_codes_come_back_exactly(grid: str, tmp_path: Path) -> None:
    model = press(encoder(), grid, "int8-g32")
    found, wanted = read_gguf(written(model, tmp_path)), stored(model)
    assert found.keys() == wanted.keys()
    for name, codes in wanted.items():
        assert codes.difference(found[name]) is None, name


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
    outputs = done.record["verified"]["outputs"]
    assert outputs["texts_tokenized_alike"] == 1
    assert outputs["median_difference"] < 0.02 * outputs["spread"]
    assert "agreement" not in outputs
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


def test_what_llama_cpp_would_compute_otherwise_is_refused() -> None:
    cased = copy.deepcopy(pieces())
    cased.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    model = encoder()
    for wrong, words in (
        (Model(model.module, cased, "embedding"), "keeps capitals or accents"),
        (encoder(hidden_act="relu"), "its activation is relu"),
    ):
        with pytest.raises(ExportError, match=words):
            refuse(wrong, Gguf(), allow_rounding=False)
