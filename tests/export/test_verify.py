"""What engines are compared with, and on: the artifact itself, on texts that it can read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import attar
from attar.core.report import Report
from attar.errors import AttarError
from attar.export._reference import Reference
from attar.export.artifact import find_artifact
from attar.export.export import Wanted
from attar.export.verify import far
from attar.models import save
from attar.runtimes.torch import TorchDecoder
from export.decoders import decoder
from tiny_models import press, tiny

UNTIMED = Wanted(speed=False)


@pytest.fixture(name="model")
def saved(tmp_path: Path) -> Path:
    save(press(decoder(), "int4-g32", "int8-g32"), tmp_path / "pressed")
    return tmp_path / "pressed"


def test_a_model_of_nan_is_told_as_what_it_is(tmp_path: Path) -> None:
    broken = decoder()
    with torch.no_grad():
        broken.module.model.norm.weight.fill_(3e38)  # of which products are infinite
    save(broken, tmp_path / "broken")
    with pytest.raises(AttarError, match=r"broken itself computes NaN .* in PyTorch"):
        attar.export(tmp_path / "broken", "hf", tmp_path / "out", wanted=UNTIMED)
    assert far({"kl": float("nan")}, "onnxruntime") is not None


def test_texts_to_compare_on_are_no_longer_than_the_model_reads(tmp_path: Path) -> None:
    model = tiny("roberta", "classification", max_position_embeddings=20)
    save(model, tmp_path / "short")
    reference = Reference(find_artifact(str(tmp_path / "short"), tmp_path))
    assert max(map(len, reference.held(model).rows)) == 19
    assert len(reference.answers(model)) == len(reference.held(model).rows)


def test_why_it_is_not_the_runs_own_data_is_told(model: Path, tmp_path: Path) -> None:
    artifact = find_artifact(str(model), tmp_path)
    gone = Report(name="gone", task="causal-lm", recipe={"data": 1}, environment={}, stages=[])
    held = Reference(replace(artifact, report=gone)).held(decoder())
    assert held.text == "a few sentences of Attar's own"
    assert held.told.startswith(f"{held.text}, for the run's held-out data is not to be had (")
    said = list[str]()
    attar.export(model, "hf", tmp_path / "out", wanted=UNTIMED, say=said.append)
    assert f"comparing its answers in torch with PyTorch's on {held.text}" in said


def test_a_file_that_cuts_every_text_otherwise_is_not_published(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchDecoder, "engine", "llama-cpp")  # which takes long to start
    monkeypatch.setattr(TorchDecoder, "tokens", lambda *_: [0])
    with pytest.raises(AttarError, match="cuts none of the texts in llama-cpp"):
        attar.export(model, "hf", tmp_path / "out", wanted=UNTIMED)
    assert list(tmp_path.iterdir()) == [model]
