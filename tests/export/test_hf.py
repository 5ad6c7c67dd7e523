"""Folders for plain transformers: the very codes, and the same answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from attar.calibrate.install import install_linear, quantize_embeddings
from attar.core.grid import Grid
from attar.core.scope import Scope
from attar.errors import ExportError
from attar.export.hf import Hf
from attar.export.prepare import merge_factors, refuse
from attar.export.target import quantized, stored
from attar.layers import DynamicLinear, LowRank, StaticLinear, swap
from attar.models.model import Model, weight_of
from attar.ops.activations import InputGrid
from attar.ops.rounding import fit_scales, quantize
from attar.runtimes import find
from tiny_models import DECODERS, batch, logits, press, tiny

pytest.importorskip("compressed_tensors")
GRIDS = (
    "int2-g32",
    "int3-g32-zp",
    "int3-channel",
    "int4-g32",
    "int4-g32-zp",
    "int4-channel-zp",
    "int8-channel",
    "int8-g32-zp",
    "fp8-e4m3-channel",
)


def answers(folder: Path, model: Model) -> torch.Tensor:
    """What plain transformers computes on the folder."""
    auto: Any = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "classification": transformers.AutoModelForSequenceClassification,
    }[model.task]
    plain = auto.from_pretrained(folder, dtype="auto").eval()
    given = batch(model)
    with torch.no_grad():
        found = plain(input_ids=given.input_ids, attention_mask=given.attention_mask).logits
    return found if model.task == "classification" else found[given.attention_mask.bool()]


def check(model: Model, folder: Path, difference: float) -> None:
    refuse(model, Hf(), allow_rounding=False)
    wanted, codes = logits(model), stored(model)
    Hf().write(model, folder)
    found = find("torch").read_back(folder)
    tables = {item.name for item in quantized(model) if Hf().floats(item)}
    assert found.keys() == codes.keys() - tables
    for name, own in found.items():
        assert own.difference(codes[name]) is None, name
    assert (answers(folder, model) - wanted).abs().max() <= difference


@pytest.mark.parametrize("grid", GRIDS)
def test_codes_and_answers(grid: str, tmp_path: Path) -> None:
    check(press(tiny("llama"), grid, "int8-channel"), tmp_path, 1e-4)


def test_weights_of_half_the_bits(tmp_path: Path) -> None:
    model = press(tiny("qwen3", dtype=torch.bfloat16), "int4-g32", "int4-g32")
    check(model, tmp_path, 0.0)


@pytest.mark.parametrize(
    "kind",
    [
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "phi",
        "phi3",
        "bert",
        "roberta",
        "electra",
        "distilbert",
    ],
)
def test_families(kind: str, tmp_path: Path) -> None:
    task = "causal-lm" if kind in DECODERS else "classification"
    model = tiny(kind, task)
    rounded(model, "int4-g32", None)
    check(model, tmp_path, 1e-4)


@pytest.mark.parametrize("inputs", ["dynamic", "static"])
def test_eight_bits_in_and_out(inputs: str, tmp_path: Path) -> None:
    model = tiny("bert", "classification")
    rounded(model, "int8-channel", inputs)
    check(model, tmp_path, 0.05)  # a value on the border between two codes may fall either way
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["format"] == "int-quantized"


def rounded(model: Model, name: str, inputs: str | None) -> None:
    grid = Grid.parse(name)
    for linear, old in model.linears(Scope.linears()).items():
        weight = weight_of(old)
        codes = quantize(weight, fit_scales(weight, grid), grid)
        if inputs == "static":
            new = install_linear(model, linear, codes, grid, StaticLinear)
            new.on(InputGrid(0.0371, 117))
        elif inputs == "dynamic":
            install_linear(model, linear, codes, grid, DynamicLinear)
        else:
            install_linear(model, linear, codes, grid)


def test_float_models_are_plain(tmp_path: Path) -> None:
    model = tiny("llama")
    check(model, tmp_path, 0.0)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_two_widths_are_two_groups(tmp_path: Path) -> None:
    model = press(tiny("llama", hidden_size=64, intermediate_size=96), "int4-g64")
    check(model, tmp_path, 1e-4)
    groups = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    sizes = [group["weights"]["group_size"] for group in groups["config_groups"].values()]
    assert sizes == [64, 32]
    zeros = press(tiny("llama", hidden_size=64, intermediate_size=96), "int4-g64-zp")
    with pytest.raises(ExportError, match="groups of one size"):
        refuse(zeros, Hf(), allow_rounding=False)


def test_a_family_that_transformers_cannot_load_is_refused() -> None:
    model = tiny("modernbert", "classification")
    refuse(model, Hf(), allow_rounding=False)
    rounded(model, "int4-g32", None)
    with pytest.raises(ExportError, match="modernbert"):
        refuse(model, Hf(), allow_rounding=False)


@pytest.mark.parametrize("grid", ["nf4-g64", "int4-g32-min", "mxfp4"])
def test_grids_that_it_does_not_pack_are_refused(grid: str) -> None:
    with pytest.raises(ExportError, match="fp8-e4m3"):
        refuse(press(tiny("llama"), grid), Hf(), allow_rounding=False)


def test_what_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    model = tiny("llama")
    name = "model.layers.0.mlp.up_proj"
    old = model.module.get_submodule(name)
    thin = LowRank(64, 32, 4, old.bias is not None)
    swap(model.module, name, thin)
    with pytest.raises(ExportError, match=r"up_proj is two thin linears.*--dense"):
        refuse(model, Hf(), allow_rounding=False)
    before = logits(model)
    assert merge_factors(model.module) == [name]
    check(model, tmp_path, 1e-4)
    assert torch.allclose(logits(model), before, atol=1e-4)


def test_conv1d_holds_no_codes() -> None:
    with pytest.raises(ExportError, match="Conv1D"):
        refuse(press(tiny("gpt2")), Hf(), allow_rounding=False)


def test_tables_alone_on_a_grid_are_plain(tmp_path: Path) -> None:
    model = tiny("llama", tie_word_embeddings=False)
    quantize_embeddings(model, Grid.parse("int8-channel"))
    check(model, tmp_path, 0.0)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
