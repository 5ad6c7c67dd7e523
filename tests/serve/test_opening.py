"""Each model is opened by the engine that its files are for, and by PyTorch otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attar.data.batches import Batch
from attar.errors import ModelError, UserError
from attar.models import save
from attar.models.pooling import vectors
from attar.runtimes.runtime import Decoder, Encoder, Engine, StoredCodes
from attar.serve import locating, opening
from attar.serve.batching import Batched
from attar.serve.delegating import Delegated
from attar.serve.locating import locate, task_at
from attar.serve.opening import Loaded, open_model
from attar.serve.settings import Limits, Settings, Source
from serve.fakes import EchoDecoder
from tiny_models import press, tiny


class Halves(Encoder):
    """A classifier's logits, or hidden states, that tell texts apart."""

    engine = "fake"

    def __init__(self, classifier: bool) -> None:
        self.classifier, self.closed = classifier, False

    def run(self, ids: Any, mask: Any) -> Any:
        if self.classifier:
            return np.stack([ids.sum(1), mask.sum(1), 0 * ids.sum(1)], 1).astype(np.float32)
        return np.stack([ids, np.ones_like(ids)], 2).astype(np.float32)

    def close(self) -> None:
        self.closed = True


class Fake(Engine):
    """Runs folders with a file of its own in them."""

    name = "fake"

    def __init__(self, opened: Decoder | Encoder | None = None) -> None:
        self.opened = opened

    def holds(self, folder: Path) -> bool:
        return (folder / "model.fake").exists()

    def open(self, folder: Path, threads: int | None = None) -> Decoder | Encoder:
        assert self.opened is not None
        return self.opened

    def read_back(self, folder: Path) -> Mapping[str, StoredCodes]:
        return {}

    def version(self) -> str:
        return "fake 1"


def opened(
    monkeypatch: pytest.MonkeyPatch, folder: Path, fake: Decoder | Encoder, **source: Any
) -> Loaded:
    engine = Fake(fake)
    monkeypatch.setattr(opening, "find", lambda name: engine)
    monkeypatch.setattr(locating, "find", lambda name: engine)
    monkeypatch.setattr(locating, "engine_of", lambda path: engine if engine.holds(path) else None)
    return open_model(Source(name="m", path=str(folder), **source), plain())


def plain() -> Settings:
    return Settings(models=(Source(name="m", path="m"),), limits=Limits(context=300, batch=4))


def exported(folder: Path, target: Path) -> Path:
    """A folder as an exporter leaves it: no safetensors, a file of the engine's."""
    shutil.copytree(folder, target)
    for weights in target.glob("*.safetensors"):
        weights.unlink()
    (target / "model.fake").touch()
    return target


def _headless(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))


def test_an_engines_decoder(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path], tmp_path: Path
):
    fake = EchoDecoder()
    fake.slots = 3
    model = opened(monkeypatch, exported(folders["writer"], tmp_path / "writer"), fake)
    assert (model.task, model.engine, model.context) == ("causal-lm", "fake", 300)
    assert isinstance(model.load, Delegated)
    assert model.ends == {5}
    assert model.tokenizer.chat_template
    model.close()
    assert fake.closed


def test_an_engines_classifier_and_embeddings(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path], tmp_path: Path
):
    fake = Halves(classifier=True)
    model = opened(monkeypatch, exported(folders["kinds"], tmp_path / "kinds"), fake)
    assert (model.task, model.labels) == ("classification", ("bad", "good", "mixed"))
    assert model.encoder is not None
    assert model.encoder.submit([[3, 4]])[0].result(10).tolist() == [7, 2, 0]
    model.close()
    assert fake.closed
    folder = exported(folders["vectors"], tmp_path / "vectors")
    with pytest.raises(ModelError, match="no hidden states"):
        opened(monkeypatch, folder, Halves(classifier=False))
    _headless(folder)
    model = opened(monkeypatch, folder, Halves(classifier=False))
    assert model.task == "embedding"
    assert model.encoder is not None
    found = model.encoder.submit([[3, 5]])[0].result(10)
    assert found == pytest.approx(np.array([4, 1]) / np.sqrt(17))
    model.close()


def test_an_engine_is_refused_what_it_does_not_run(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]
):
    with pytest.raises(UserError, match="fake does not run what is in"):
        opened(monkeypatch, folders["writer"], EchoDecoder(), engine="fake")


def test_everything_else_is_pytorchs(folders: dict[str, Path]):
    source = Source(name="m", path=str(folders["writer"]))
    place = locate(source)
    assert place.engine == "torch"
    assert place.size == sum(p.stat().st_size for p in folders["writer"].glob("*.safetensors"))
    model = open_model(source, plain())
    assert isinstance(model.load, Batched)
    assert model.context == 64
    assert model.size > 0
    model.close()


def test_what_a_model_is_for_is_known_before_it_is_loaded(folders: dict[str, Path], tmp_path: Path):
    tasks = {"writer": "causal-lm", "kinds": "classification", "vectors": "embedding"}
    for name, task in tasks.items():
        assert task_at(Source(name=name, path=str(folders[name]))) == task
    given = Source(name="kinds", path=str(folders["kinds"]), task="embedding")
    assert task_at(given) == "embedding"
    assert task_at(Source(name="none", path=str(tmp_path / "none"))) is None


def test_an_encoder_without_a_head_gives_embeddings(folders: dict[str, Path], tmp_path: Path):
    folder = tmp_path / "headless"
    shutil.copytree(folders["vectors"], folder)
    _headless(folder)
    found = []
    for path in (folder, folders["vectors"]):
        model = open_model(Source(name="m", path=str(path)), plain())
        assert (model.task, model.labels) == ("embedding", ())
        assert model.encoder is not None
        found.append(model.encoder.submit([[2, 9, 8, 3]])[0].result(30))
        model.close()
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert np.linalg.norm(found[0]) == pytest.approx(1)


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
@pytest.mark.parametrize("target", ["", "hf", "onnx", "openvino"])
def test_vectors_are_those_that_the_model_says(target: str, pool: str, tmp_path: Path):
    for package in {"onnx": ["onnxruntime"], "openvino": ["openvino_tokenizers"]}.get(target, []):
        pytest.importorskip(package)
    from attar.export.export import Wanted, export

    model = press(tiny("bert", "embedding"), "int8-channel")
    model.config.sentence_pooling = pool
    save(model, tmp_path / "model")
    folder = tmp_path / "model"
    if target:
        folder = export(folder, target, tmp_path / target, tmp_path, Wanted(speed=False)).folder
    served = open_model(Source(name="m", path=str(folder)), plain())
    assert served.task == "embedding"
    assert served.encoder is not None
    rows = [[2, 9, 8, 3], [2, 3], [2] + [7] * 40]
    for row, future in zip(rows, served.encoder.submit(rows), strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            wanted = vectors(model, Batch(ids, torch.ones_like(ids), ids))[0]
        assert future.result(60) == pytest.approx((wanted / wanted.norm()).numpy(), abs=0.02)
    served.close()


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_an_exported_classifier_is_served_from_its_folder_alone(
    target: str, folders: dict[str, Path], tmp_path: Path
):
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino_tokenizers"}[target])
    from attar.export.export import Wanted, export

    wanted = Wanted(speed=False, verify=False)
    done = export(folders["kinds"], target, tmp_path / target, tmp_path, wanted)
    answers = []
    for path in (done.folder, folders["kinds"]):
        model = open_model(Source(name="m", path=str(path)), plain())
        assert model.labels == ("bad", "good", "mixed")
        assert model.encoder is not None
        futures = model.encoder.submit([[2, 9, 8, 3], [2, 3], [2] + [7] * 40])
        answers.append(np.stack([future.result(60) for future in futures]))
        model.close()
    assert answers[0] == pytest.approx(answers[1], abs=0.05)


def test_all_tokens_that_end_an_answer_are_read_beside_an_export(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path], tmp_path: Path
):
    folder = exported(folders["writer"], tmp_path / "writer")
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 77]}')
    model = opened(monkeypatch, folder, EchoDecoder())
    assert model.ends == {5, 77}
    model.close()
