"""An export in every engine that runs it: compared, timed, told in its record and its card."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import attar
from attar.core.report import Figure
from attar.errors import AttarError, ModelError, UserError
from attar.export.everything import All, export_all, time_again
from attar.export.export import Wanted
from attar.export.record import RECORD, in_engines, read_record
from attar.models import save
from attar.runtimes.genai import Genai
from attar.runtimes.onnxruntime import OnnxRuntime
from attar.runtimes.torch import TorchDecoder
from export.decoders import decoder
from export.encoders import encoder
from tiny_models import press

pytest.importorskip("onnxruntime_genai")
Speeds = dict[str, float]


@pytest.fixture(name="speeds")
def made_up(monkeypatch: pytest.MonkeyPatch) -> Speeds:
    """Speeds that nobody measured, by engine; one that is not there fails."""
    found: Speeds = {"onnxruntime": 60.0, "genai": 90.0}

    def timed(_: Path, engine: str, *__: object, **___: object) -> dict[str, Figure]:
        if engine not in found:
            raise AttarError(f"{engine} was killed")
        return {"tokens_per_second": Figure(value=found[engine], unit="tokens/s", note="here")}

    monkeypatch.setattr("attar.export.export.time_engine", timed)
    return found


@pytest.fixture(name="model")
def saved(tmp_path: Path) -> Path:
    save(press(decoder(), "int8-g32", "int8-g32"), tmp_path / "pressed")
    return tmp_path / "pressed"


def again(model: Path, home: Path) -> All:
    return time_again(str(model), home)


def rates(folder: Path) -> Speeds:
    each = in_engines(folder, read_record(folder))
    return {one.engine: one.speed["tokens_per_second"].value for one in each if one.speed}


def test_each_engine_is_compared_and_timed(model: Path, tmp_path: Path, speeds: Speeds) -> None:
    done = attar.export(model, "onnx", home=tmp_path)
    each = in_engines(done.folder, done.record)
    assert [one.engine for one in each] == ["onnxruntime", "genai"]
    for one in each:
        assert 0 <= one.outputs["kl"] < 0.05
        assert one.outputs["agreement"] > 0.8
    assert rates(done.folder) == speeds
    assert done.speed["tokens_per_second"].value == speeds["onnxruntime"]
    text = (done.folder / "README.md").read_text()
    assert "- its answers in onnxruntime beside PyTorch's on a few sentences" in text
    assert "- its answers in genai beside PyTorch's on a few sentences" in text
    assert "- tokens_per_second in genai: 90 tokens/s (here)" in text


def test_pytorch_answers_once_for_all_of_them(
    model: Path, tmp_path: Path, speeds: Speeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(self: TorchDecoder, ids: list[int]) -> Any:
        asked.append(tuple(ids))
        return true(self, ids)

    true, asked = TorchDecoder.logprobs, list[tuple[int, ...]]()
    monkeypatch.setattr(TorchDecoder, "logprobs", counted)
    few = SimpleNamespace(names=lambda: ["onnx", "openvino"])
    monkeypatch.setattr("attar.export.everything.TARGETS", few)
    wanted = Wanted(speed=False, allow_rounding=True)
    done = export_all(model, home=tmp_path, wanted=wanted)
    assert [one.engine for one in done.exports] == ["onnxruntime", "genai", "openvino"]
    assert len(asked) == len({*asked}) == 4
    for target in ("onnx", "openvino"):  # the same figures as of one alone
        alone = attar.export(model, target, tmp_path / target, tmp_path, wanted)
        each = {one.engine: one.outputs for one in in_engines(alone.folder, alone.record)}
        assert each == {one.engine: one.outputs for one in done.exports if one.target == target}
    save(press(decoder(), "q4_1", "int8-g32"), tmp_path / "minima")
    asked.clear()
    done = export_all(tmp_path / "minima", home=tmp_path, wanted=wanted)
    assert all(one.record["rounded"] for one in done.exports)
    assert len(asked) == 2 * len({*asked}) == 8  # what was rounded once more answers otherwise


def test_an_encoder_has_no_engine_of_decoders(tmp_path: Path, speeds: Speeds) -> None:
    save(press(encoder(), "int8-g32"), tmp_path / "vectors")
    done = attar.export(tmp_path / "vectors", "onnx", home=tmp_path)
    assert list(done.record["engines"]) == ["onnxruntime"]


def test_another_engine_that_fails_is_told_and_left_out(
    model: Path, tmp_path: Path, speeds: Speeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise ModelError("it has no such operator")

    monkeypatch.setattr(Genai, "open", broken)
    said: list[str] = []
    done = attar.export(model, "onnx", home=tmp_path, say=said.append)
    assert list(done.record["engines"]) == ["onnxruntime"]
    [warning] = done.record["warnings"]
    assert warning == "genai failed, onnxruntime runs it: it has no such operator"
    assert f"warning: {warning}" in said
    monkeypatch.setattr(OnnxRuntime, "open", broken)
    with pytest.raises(ModelError, match="no such operator"):
        attar.export(model, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_timed_again_in_all_of_them(model: Path, tmp_path: Path, speeds: Speeds) -> None:
    done = attar.export(model, "onnx", home=tmp_path)
    speeds |= {"onnxruntime": 75.0, "genai": 45.0}
    found = again(model, tmp_path)
    assert {one.engine: one.speed["tokens_per_second"].value for one in found.exports} == speeds
    assert found.fastest is not None
    assert found.fastest.engine == "onnxruntime"
    assert rates(done.folder) == speeds
    text = (done.folder / "README.md").read_text()
    assert "- tokens_per_second in onnxruntime: 75 tokens/s (here)" in text
    assert "90 tokens/s" not in text
    del speeds["genai"]
    found = again(model, tmp_path)
    assert found.skipped == {"onnx in genai": "genai was killed"}
    assert rates(done.folder) == {**speeds, "genai": 45.0}  # of this machine, so they compare
    assert "- tokens_per_second in genai: 45 tokens/s" in (done.folder / "README.md").read_text()
    record = json.loads((done.folder / RECORD).read_text())
    record["environment"]["processor"] = "another"
    (done.folder / RECORD).write_text(json.dumps(record))
    again(model, tmp_path)
    assert rates(done.folder) == speeds  # and no figure of another machine
    assert "tokens_per_second in genai" not in (done.folder / "README.md").read_text()
    assert (
        in_engines(done.folder, read_record(done.folder))[1].outputs
        == (done.record["engines"]["genai"]["outputs"])
    )
    before = (done.folder / RECORD).read_text()
    speeds.clear()
    found = again(model, tmp_path)
    assert (found.exports, list(found.skipped)) == ([], ["onnx in onnxruntime", "onnx in genai"])
    assert (done.folder / RECORD).read_text() == before


def test_a_record_of_one_engine_is_read_and_timed_in_all(
    model: Path, tmp_path: Path, speeds: Speeds
) -> None:
    done = attar.export(model, "onnx", home=tmp_path)
    record = json.loads((done.folder / RECORD).read_text())
    found = record.pop("engines")["onnxruntime"]
    record["verified"]["outputs"] = found["outputs"]
    former = {**record, "format": 1, "engine": found["version"], "speed": found["speed"]}
    (done.folder / RECORD).write_text(json.dumps(former))
    assert read_record(done.folder) == {**record, "engines": {"onnxruntime": found}} | {
        "verified": {"codes": record["verified"]["codes"]}
    }
    assert rates(done.folder) == {"onnxruntime": 60.0}
    again(model, tmp_path)
    assert rates(done.folder) == speeds


def test_nothing_to_time(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`attar export REF --all` makes them"):
        again(model, tmp_path)
    quick = Wanted(speed=False, verify=False)
    done = attar.export(model, "onnx-web", home=tmp_path, wanted=quick)
    assert "speed" not in done.record["engines"]["onnxruntime"]
    with pytest.raises(UserError, match="is or has no export"):
        again(model, tmp_path)


def test_an_exports_folder_is_timed_where_its_artifact_is_not(
    model: Path, tmp_path: Path, speeds: Speeds
) -> None:
    done = attar.export(model, "onnx", tmp_path / "elsewhere", home=tmp_path)
    speeds["genai"] = 120.0
    assert time_again(str(done.folder), tmp_path).fastest is not None
    assert "genai: 120 tokens/s" in (done.folder / "README.md").read_text()
    model.rename(tmp_path / "gone")
    speeds["genai"] = 150.0
    time_again(str(done.folder), tmp_path)
    assert rates(done.folder) == {"onnxruntime": 60.0, "genai": 150.0}
    assert "genai: 120 tokens/s" in (done.folder / "README.md").read_text()


def test_the_card_of_a_run_keeps_what_the_run_tells(tmp_path: Path, speeds: Speeds) -> None:
    save(decoder(), tmp_path / "float")
    recipe = {
        "name": "first",
        "model": str(tmp_path / "float"),
        "steps": [{"quantize/rtn": {"grid": "int8-g32"}}],
    }
    attar.run(recipe, home=tmp_path)
    done = attar.export("first", "onnx", tmp_path / "elsewhere", home=tmp_path)
    speeds["genai"] = 120.0
    time_again(str(done.folder), tmp_path)
    text = (done.folder / "README.md").read_text()
    assert "# first\n" in text
    assert "1. `quantize/rtn`" in text
    assert "genai: 120 tokens/s" in text
    speeds["genai"] = 150.0
    time_again(str(done.folder), tmp_path / "another")
    assert (done.folder / "README.md").read_text() == text
    assert rates(done.folder)["genai"] == 150.0


def test_what_cannot_be_timed_is_published_without(
    model: Path, tmp_path: Path, speeds: Speeds
) -> None:
    del speeds["onnxruntime"]  # which reads it back
    done = attar.export(model, "onnx", home=tmp_path)
    assert rates(done.folder) == {"genai": 90.0}
    assert done.record["warnings"] == ["onnxruntime was not timed: onnxruntime was killed"]
    assert done.outputs["kl"] < 0.05
    speeds["onnxruntime"] = 60.0
    again(model, tmp_path)
    assert rates(done.folder) == speeds
    assert read_record(done.folder)["warnings"] == []


def test_an_engine_that_breaks_does_not_stop_the_others(
    model: Path, tmp_path: Path, speeds: Speeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> str:
        raise RuntimeError("no such library")

    attar.export(model, "onnx", home=tmp_path)
    monkeypatch.setattr(OnnxRuntime, "version", broken)
    found = again(model, tmp_path)
    assert found.skipped == {"onnx in onnxruntime": "RuntimeError: no such library"}
    assert [one.engine for one in found.exports] == ["genai"]


def test_an_export_that_goes_there_meanwhile_keeps_its_own_figures(
    model: Path, tmp_path: Path, speeds: Speeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> dict[str, Any]:
        done.record["bytes"] += 1
        (done.folder / RECORD).write_text(json.dumps(done.record))
        return {}

    def locked(*given: Any) -> None:
        assert (done.folder.parent / ".onnx.attar-lock").is_file()
        written.append(given)

    done, written = attar.export(model, "onnx", home=tmp_path), list[Any]()
    monkeypatch.setattr("attar.export.everything.write_record", locked)
    again(model, tmp_path)
    assert len(written) == 1
    monkeypatch.setattr("attar.export.everything.timed", busy)
    found = again(model, tmp_path)
    assert len(written) == 1
    assert "exported anew while it was timed" in found.skipped["onnx"]
    assert found.exports == []
