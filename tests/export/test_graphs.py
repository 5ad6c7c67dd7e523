"""Graphs compute what PyTorch computes, and hold the very codes that the model has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attar.core.scope import Scope
from attar.export import target
from attar.export.graphs import decoder, encoder
from attar.layers import LowRank, RoundedLinear, StaticLinear, swap
from attar.measure.machine import saturates_int8
from attar.models.model import Model, weight_of
from attar.models.uneven import keep_groups, keep_neurons
from attar.ops.activations import InputGrid
from attar.runtimes import find
from export.answers import alike, expected
from tiny_models import batch, press, tiny

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

CLASSIFIERS = [(name, "classification") for name in encoder.FAMILIES]
MASKED = [(name, "masked-lm") for name in encoder.FAMILIES]
NO_CAPS = [name for name in decoder.FAMILIES if name != "gemma2"]


def language_model(family: str) -> Model:
    """Heads of 16, which ONNX Runtime's attention asks for."""
    return tiny(family, hidden_size=64, head_dim=16, query_pre_attn_scalar=16)


def opened(engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The engine, told to compute in float32."""
    if engine == "openvino":
        from attar.runtimes import openvino

        exact = {
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            "KV_CACHE_PRECISION": "f32",
        }
        monkeypatch.setattr(openvino, "SETTINGS", exact)
    return find(engine).open(folder, threads=1)


def exported(name: str, model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model in this container, opened by its engine."""
    from attar.export.graphs import onnx_graph

    monkeypatch.setattr(onnx_graph, "ACCURACY", 1)
    found = target.find(name)
    assert not found.problems(model)
    found.write(model, folder)
    return opened(found.engine, folder, monkeypatch)


def agrees(name: str, model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are PyTorch's."""
    with exported(name, model, folder, monkeypatch) as engine:
        alike(engine, model, batch(model, length=20))


@pytest.mark.parametrize("family", decoder.FAMILIES)
def test_decoders_in_onnx(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agrees("onnx", language_model(family), tmp_path, monkeypatch)


@pytest.mark.parametrize("family", NO_CAPS)
def test_decoders_in_openvino(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agrees("openvino", language_model(family), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize(("family", "task"), [*CLASSIFIERS, *MASKED])
def test_encoders(
    family: str, task: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agrees(name, tiny(family, task), tmp_path, monkeypatch)


GRIDS = ["int4-g32", "int4-g32-zp", "int8-channel", "int8-g32-zp", "int3-g32", "int2-g32-zp"]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize("grid", GRIDS)
def test_codes_are_the_models_own(
    name: str, grid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = press(language_model("llama"), grid)
    agrees(name, model, tmp_path, monkeypatch)
    read = find(target.find(name).engine).read_back(tmp_path)
    wanted = target.stored(model)
    assert read.keys() == wanted.keys()
    for linear, codes in wanted.items():
        assert codes.difference(read[linear]) is None


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize("table", ["int4-g32", "int4-g32-zp", "int8-g32-zp", "int3-channel"])
def test_a_table_serves_look_up_and_head(
    name: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = press(language_model("llama"), "int4-g64", table)
    agrees(name, model, tmp_path, monkeypatch)
    read = find(target.find(name).engine).read_back(tmp_path)
    wanted = target.stored(model)["model.embed_tokens"]
    assert wanted.difference(read["model.embed_tokens"]) is None


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize("family", encoder.FAMILIES)
def test_static_inputs_are_on_their_own_grid(
    name: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = press(tiny(family, "classification"), "int8-channel")
    for place, (linear_name, linear) in enumerate(model.linears(Scope.linears()).items()):
        kind = RoundedLinear if place % 3 == 0 else StaticLinear
        new = kind(linear.rows, linear.width, linear.grid, linear.bias)
        codes = linear.unpacked()
        if saturates_int8():  # sums of products of 7 bits do not overflow there
            codes = replace(codes, codes=codes.codes // 2)
        new.fill(codes).on(InputGrid(0.05 + place / 1000, 121 + place))
        if isinstance(new, RoundedLinear):
            new.onto(InputGrid(0.07 + place / 1000, 120 + place))
        swap(model.module, linear_name, new)
    given = batch(model)
    with exported(name, model, tmp_path, monkeypatch) as engine:
        found = engine.run(given.input_ids.numpy(), given.attention_mask.numpy())
    wanted = expected(model, given)
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
    read = find(target.find(name).engine).read_back(tmp_path)
    for linear_name, codes in target.stored(model).items():
        assert codes.difference(read[linear_name]) is None


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_linears_in_two_factors(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model("llama")
    for linear_name, linear in model.linears(Scope(patterns=("*.q_proj",))).items():
        rows, width = weight_of(linear).shape
        new = LowRank(rows, width, 8)
        swap(model.module, linear_name, new)
    agrees(name, model, tmp_path, monkeypatch)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_half_precision_stays_so(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family, "classification", dtype=torch.bfloat16)
    exported("openvino", model, tmp_path, monkeypatch).close()
    weights = sum(p.numel() for p in model.module.parameters() if p.dim() > 1)
    assert (tmp_path / "openvino_model.bin").stat().st_size < 3 * weights
    model.module.float()
    given = batch(model)
    with opened("openvino", tmp_path, monkeypatch) as engine:
        found = engine.run(given.input_ids.numpy(), given.attention_mask.numpy())
    np.testing.assert_allclose(found, expected(model, given), atol=1e-4)


@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("engine", ["onnxruntime", "genai", "openvino"])
def test_blocks_with_heads_of_their_own(
    engine: str, narrow: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model("llama")
    keep_groups(model, narrow, [1])
    keep_neurons(model, 2, list(range(48)))
    name = "openvino" if engine == "openvino" else "onnx"
    exported(name, model, tmp_path, monkeypatch).close()
    ids = batch(model).input_ids[:1]
    with torch.no_grad():
        wanted = model.module(ids).logits[0].log_softmax(-1).numpy()
    with opened(engine, tmp_path, monkeypatch) as decoder_:
        found = decoder_.logprobs(ids[0].tolist())
        written = [token.id for token in decoder_.generate(ids[0].tolist()[:8], 1)]
    assert written == [wanted[7].argmax()]
    np.testing.assert_allclose(found, wanted, atol=2e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("engine", ["onnxruntime", "genai", "openvino"])
def test_texts_as_long_as_the_context(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model("llama")
    name = "openvino" if engine == "openvino" else "onnx"
    exported(name, model, tmp_path, monkeypatch).close()
    prompt = batch(model, length=60).input_ids[0].tolist()
    with opened(engine, tmp_path, monkeypatch) as decoder_:
        assert decoder_.context == 64
        assert len(list(decoder_.generate(prompt, 100))) == 4
        assert list(decoder_.generate([*prompt, 7, 8, 9, 10], 1)) == []
        assert decoder_.logprobs([*prompt, 7, 8, 9, 10]).shape == (64, 100)


@pytest.mark.parametrize("engine", ["onnxruntime", "genai", "openvino"])
def test_written_tokens_are_the_likeliest(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model("llama")
    prompt, limit = [7, 30, 12, 45, 9], 12
    exported("openvino" if engine == "openvino" else "onnx", model, tmp_path, monkeypatch).close()
    with torch.no_grad():
        ids = torch.tensor([prompt])
        for _ in range(limit):
            ids = torch.cat((ids, model.module(ids).logits[:, -1:].argmax(-1)), 1)
    with opened(engine, tmp_path, monkeypatch) as decoder_:
        found = list(decoder_.generate(prompt, limit, top=3))
        again = list(decoder_.generate(prompt, limit))
    assert [token.id for token in found] == ids[0, len(prompt) :].tolist()
    assert [token.id for token in again] == [token.id for token in found]
    assert all(token.top[0] == (token.id, token.logprob) for token in found)
