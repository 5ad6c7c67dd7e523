"""What counts against the budget: weights, and the keys and values that answers come to."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from attar.errors import UserError
from attar.export import target
from attar.layers import QuantizedLinear
from attar.models import save
from attar.models.rows import Rows
from attar.serve.locating import Place, expected, locate, placed
from attar.serve.memory import caches, footprint, text_bytes
from attar.serve.models import Pool
from attar.serve.opening import open_model
from attar.serve.settings import Limits, Settings, Source
from tiny_models import DECODERS, press, tiny


def given(path: Path, memory: int | None = None, batch: int = 4) -> tuple[Source, Settings]:
    source = Source(name="m", path=str(path))
    limits = Limits(context=300, batch=batch)
    return source, Settings(models=(source,), memory=memory, limits=limits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "phi"])
def test_as_much_as_pytorchs_cache_holds_when_it_is_full(family: str, tmp_path: Path) -> None:
    assert family in DECODERS
    model = tiny(family, max_position_embeddings=300)
    save(model, tmp_path)
    source, settings = given(tmp_path, batch=3)
    place = locate(source)
    rows = Rows(model)
    for row in range(3):
        rows.extend({row: [7] * 256})
        rows.extend({row: [8] for row in range(row + 1)})
    held = [part for layer in rows._table.cache.layers for part in layer.tensors()]
    wanted = sum(part.numel() * part.element_size() for part in held)
    found = text_bytes(place, source, settings) * caches("torch", 3)
    assert found == wanted
    assert footprint(place, source, settings).total == place.size + wanted


def test_encoders_have_no_cache(folders: dict[str, Path]) -> None:
    for name in ("kinds", "vectors"):
        source, settings = given(folders[name])
        assert expected(source, settings).cache == 0


def test_half_floats_take_half(folders: dict[str, Path]) -> None:
    source, settings = given(folders["writer"])
    place = locate(source)
    whole = text_bytes(place, source, settings)
    assert whole == 2 * 3 * 2 * 8 * 256 * 4  # layers, heads of keys, their width, columns, bytes
    engine = Place(place.folder, "openvino", 0)
    assert text_bytes(engine, source, settings) == 2 * 3 * 2 * 8 * 64 * 2  # as long as it may be


def test_a_gguf_file_tells_it_in_its_header(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from export.decoders import decoder

    model = decoder()
    target.find("gguf").write(model, tmp_path)
    source, settings = given(tmp_path)
    place = Place(tmp_path, "llama-cpp", 0)
    sizes, length = model.sizes, min(300, model.config.max_position_embeddings)
    each = 2 * len(model.blocks) * sizes.keys * sizes.head * length * 2
    assert text_bytes(place, source, settings) == each
    assert footprint(place, source, settings).cache == 4 * each
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))  # as hubs have it
    assert text_bytes(place, source, settings) == each


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("family", ["llama", "phi", "gemma2"])
def test_what_pytorch_brings_into_floats_is_counted(
    family: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attar.serve.pytorch.fast_bf16", lambda device: fast)
    model = tiny(family)
    model.module.bfloat16()
    save(press(model, "int4-g32"), tmp_path)
    source, settings = given(tmp_path)
    found = expected(source, settings)
    loaded = open_model(source, settings)
    module = cast("Any", loaded.load)._batch._model.module
    assert module.dtype == (torch.bfloat16 if fast else torch.float32)
    assert all(q.floats is not None for q in module.modules() if isinstance(q, QuantizedLinear))
    with torch.no_grad():
        assert module(input_ids=torch.tensor([[5, 6, 7]])).logits.dtype == module.dtype
    assert loaded.size <= found.weights < 1.1 * loaded.size
    loaded.close()
    files = locate(source)
    tight = given(tmp_path, files.size + text_bytes(files, source, settings) * 4)[1]
    packed = open_model(source, tight)
    kept = cast("Any", packed.load)._batch._model.module
    assert all(q.floats is None for q in kept.modules() if isinstance(q, QuantizedLinear))
    assert packed.held <= (tight.memory or 0)
    packed.close()
    two = settings.model_copy(update={"models": (source, Source(name="n", path=source.path))})
    for memory, floats in ((2 * found.total, True), (2 * found.total - 1, False)):
        placed_ = placed(source, two.model_copy(update={"memory": memory}))
        assert placed_.floats == floats  # one would be unloaded for the other


def test_fewer_answers_at_once_where_the_budget_has_no_room_for_all(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    source, settings = given(folders["writer"])
    whole = expected(source, settings)
    assert whole.batch == 4
    one = whole.cache // 4
    tight = settings.model_copy(update={"memory": whole.weights + 2 * one})
    assert expected(source, tight).batch == 2
    with caplog.at_level(logging.INFO, "attar.serve"):
        model = open_model(source, tight)
    assert model.cache == 2 * one
    assert model.held <= whole.weights + 2 * one
    assert [r.facts for r in caplog.records if r.msg == "fewer answers at once"] == [  # pyright: ignore
        {"model": "m", "batch": 2, "wanted": 4}
    ]
    model.close()
    tighter = settings.model_copy(update={"memory": whole.weights + one - 1})
    with pytest.raises(Exception, match="lower --limit context"):
        Pool(tighter)


def test_what_a_config_does_not_tell_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "new"}))
    source, settings = given(tmp_path)
    assert text_bytes(Place(tmp_path, "torch", 5), source, settings) == 0


def test_a_gguf_file_that_is_named_is_the_one_that_runs(tmp_path: Path) -> None:
    """As hubs have them: a model at several widths, side by side."""
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from export.decoders import decoder

    for grid in ("q4_0", "q8_0"):
        (tmp_path / grid).mkdir()
        target.find("gguf").write(press(decoder(), grid), tmp_path / grid)
        (tmp_path / grid / "model.gguf").rename(tmp_path / f"{grid}.gguf")
    sizes = [(tmp_path / f"{grid}.gguf").stat().st_size for grid in ("q4_0", "q8_0")]
    for grid, size in zip(("q4_0", "q8_0"), sizes, strict=True):
        source, settings = given(tmp_path / f"{grid}.gguf")
        place = locate(source)
        assert (place.engine, place.size) == ("llama-cpp", size)
        assert place.path == tmp_path / f"{grid}.gguf"
        assert text_bytes(place, source, settings) > 0
        loaded = open_model(source, settings)
        assert (loaded.engine, loaded.task) == ("llama-cpp", "causal-lm")
        loaded.close()
    named = source.model_copy(update={"engine": "openvino"})
    with pytest.raises(UserError, match="openvino does not run what is in"):
        locate(named)
