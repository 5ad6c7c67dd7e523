"""What a container has no place for is refused by name, before weights load; or is held exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attar
from attar.core.grid import Grid
from attar.errors import ExportError
from attar.export.export import Wanted
from attar.export.target import find
from attar.layers import CACHED, CacheGrid, Exits, Heads, SharedBlocks, swap
from attar.layers.exits import NAME as EXITS
from attar.layers.heads import NAME as HEADS
from attar.layers.shared import NAME as SHARED
from attar.models import Model, adapters, save
from attar.models.prompts import NAME as PROMPT
from attar.models.prompts import Prefix, SoftPrompt
from attar.models.uneven import keep_neurons
from attar.runtimes import find as find_engine
from export.decoders import decoder
from tiny_models import batch, logits, press, tiny

for package in ("gguf", "onnx", "onnxruntime", "openvino", "openvino_tokenizers", "peft"):
    pytest.importorskip(package)
pytest.importorskip("compressed_tensors")
ALL = ("gguf", "hf", "onnx", "openvino")
GRAPHS = ("onnx", "openvino")
PLAIN = ("gguf", "hf")
QUICK = Wanted(speed=False, verify=False)


def drawn(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def classifier() -> Model:
    return tiny("bert", "classification")


def with_soft_prompt() -> Model:
    model = decoder()
    swap(model.module, PROMPT, SoftPrompt(3, 64).fill(drawn(3, 64)))
    return model


def with_prefix() -> Model:
    model = decoder()
    prefix = Prefix(3, 3, 2, 16)
    swap(model.module, PROMPT, prefix.fill(drawn(*prefix.weight.shape)))
    return model


def with_adapter() -> Model:
    model = decoder()
    names = [f"model.layers.{index}.mlp.up_proj" for index in range(3)]
    adapters.put(model.module, names, adapters.Low(4, 8.0, 0.0))
    for parameter in adapters.numbers_of(model.module):
        parameter.data = drawn(*parameter.shape)
    return model


def with_heads() -> Model:
    model = classifier()
    heads = Heads(32, {"mood": ("calm", "angry")})
    for parameter in heads.parameters():
        parameter.data = drawn(*parameter.shape)
    swap(model.module, HEADS, heads)
    return model


def with_exits() -> Model:
    model = classifier()
    exits = Exits([0], (32, 8, 3), "bert.encoder.layer", "classifier", "first", 0.3)
    swap(model.module, EXITS, exits)
    return model


def with_cache_grid() -> Model:
    model = decoder()
    for index in range(3):
        swap(
            model.module,
            f"model.layers.{index}.self_attn.{CACHED}",
            CacheGrid(Grid.parse("fp8-e4m3-channel")),
        )
    return model


def shared() -> Model:
    model = decoder()
    swap(model.module, SHARED, SharedBlocks("model.layers", [0, 1, 0]))
    return model


def uneven() -> Model:
    model = decoder()
    keep_neurons(model, 0, list(range(32)))
    return model


def both_heads() -> Model:
    return tiny("bert", both_heads=True)


REFUSED: list[tuple[Any, tuple[str, ...], str]] = [
    (with_soft_prompt, ALL, r"prompt is learned and read before every text"),
    (with_prefix, ALL, r"prompt is learned and read before every text"),
    (
        with_adapter,
        ALL,
        r"an adapter lies beside the weights of \S*layers.0.mlp.up_proj and 2 more",
    ),
    (with_heads, ("hf", *GRAPHS), r"heads holds the heads of further tasks"),
    (with_exits, ("hf", *GRAPHS), r"exits lets answers leave before the last block"),
    (with_cache_grid, ALL, r"cached \(like 2 more\) puts cached keys and values on a grid"),
    (shared, PLAIN, r"shared_blocks says that blocks share their weights"),
    (uneven, PLAIN, r"has a shape of its own"),
    (both_heads, GRAPHS, r"tells whether one text follows another"),
    (lambda: tiny("bert", "classification", is_decoder=True), GRAPHS, r"see those before them"),
    (lambda: tiny("bert"), ("gguf",), r"the model is for masked-lm, and GGUF is for decoders"),
    (lambda: decoder(hidden_act="tanh"), GRAPHS, r"the activation tanh is not among silu"),
]


@pytest.mark.parametrize(
    ("make", "target", "words"),
    [(make, target, words) for make, targets, words in REFUSED for target in targets],
)
def test_refused_before_weights_are_loaded(
    make: Any, target: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make(), tmp_path / "model")

    def never(*_: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("attar.export.export.load", never)
    with pytest.raises(ExportError, match=words):
        attar.export(tmp_path / "model", target, tmp_path / "out", wanted=QUICK)
    assert not (tmp_path / "out").exists()


def test_an_adapter_in_memory_is_refused_too() -> None:
    from attar.export.prepare import refuse_codes

    with pytest.raises(ExportError, match="an adapter lies beside"):
        refuse_codes(with_adapter(), find("hf"), allow_rounding=False)


@pytest.mark.parametrize("target", GRAPHS)
@pytest.mark.parametrize("make", [shared, uneven])
def test_graphs_hold_blocks_that_share_or_differ(
    make: Any, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    monkeypatch.setattr("attar.runtimes.openvino.SETTINGS", exact)
    model = make()
    save(model, tmp_path / "model")
    done = attar.export(tmp_path / "model", target, tmp_path / "out", wanted=QUICK)
    ids = batch(model).input_ids[0]
    with torch.no_grad():
        wanted = model.module(ids[None]).logits[0].log_softmax(-1).numpy()
    with find_engine(find(target).engine).open(done.folder, threads=1) as opened:
        found = opened.logprobs(ids.tolist())  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(found, wanted, atol=2e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("pressed", [False, True])
@pytest.mark.parametrize("make", [lambda: tiny("bert", "embedding"), both_heads])
def test_hf_holds_models_without_a_head_or_with_two(
    make: Any, pressed: bool, tmp_path: Path
) -> None:
    model = press(make(), "int8-channel") if pressed else make()
    expected = logits(model)
    save(model, tmp_path / "model")
    done = attar.export(tmp_path / "model", "hf", tmp_path / "out", wanted=Wanted(speed=False))
    assert done.outputs["largest_difference"] < 1e-4
    assert ("agreement" in done.outputs) == (model.task != "embedding")
    again = attar.load(done.folder)
    assert again.task == model.task
    assert (logits(again) - expected).abs().max() < 1e-4
