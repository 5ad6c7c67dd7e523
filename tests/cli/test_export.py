from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from attar.cli.demo import ship
from attar.core.report import Figure, Report, StageReport
from attar.errors import AttarError
from attar.export.target import TARGETS
from attar.models import save
from cli.calling import Attar
from export.decoders import decoder
from tiny_models import press, tiny

pytest.importorskip("compressed_tensors")


def test_targets_are_listed(attar: Attar) -> None:
    done = attar("export", "anything")
    assert done.code == 2
    assert TARGETS.names() == [entry.kind for entry in TARGETS.entries()]
    for entry in TARGETS.entries():
        assert f"{entry.kind}: {entry.summary}" in done.err
        assert TARGETS.find(entry.kind).engine


def test_an_export_its_card_and_its_speed(attar: Attar, tmp_path: Path) -> None:
    save(press(decoder(), "int4-g32", "int8-g32"), tmp_path / "pressed")
    home = ("--home", str(tmp_path / "home"))
    done = attar("export", str(tmp_path / "pressed"), "hf", "--no-speed", *home)
    assert done.code == 0, done.err
    folder = tmp_path / "home" / "exports" / "pressed" / "hf"
    assert str(folder) in done.out
    record = json.loads((folder / "attar-export.json").read_text())
    assert record["engines"]["torch"]["outputs"]["largest_difference"] < 1e-3
    card = attar("card", str(tmp_path / "pressed"), *home)
    assert card.code == 0
    assert "## hf" in card.out
    timed = attar("bench", str(tmp_path / "pressed"), "--threads", "1", *home)
    assert timed.code == 0, timed.err
    assert "fastest here: hf in torch" in timed.out
    record = json.loads((folder / "attar-export.json").read_text())
    speed = record["engines"]["torch"]["speed"]
    assert speed["tokens_per_second"]["value"] > 0
    assert speed["peak_memory"]["value"] > 1e6
    told = f"{speed['peak_memory']['value'] / 1e6:.1f} MB"
    assert f"peak_memory in torch: {told}" in (folder / "README.md").read_text()


@pytest.fixture(name="timed")
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three targets, and speeds that nobody measured: llama.cpp is the fastest."""

    def timed(_: Path, engine: str, *__: object, **___: object) -> dict[str, Figure]:
        rate = {"llama-cpp": 300.0, "genai": 200.0}.get(engine, 20.0)
        return {
            "tokens_per_second": Figure(value=rate, unit="tokens/s"),
            "latency_p50": Figure(value=1000 / rate, unit="ms"),
            "latency_p95": Figure(value=2000 / rate, unit="ms"),
            "first_token": Figure(value=7.51, unit="ms"),
            "peak_memory": Figure(value=2.5e8, unit="bytes"),
        }

    monkeypatch.setattr("attar.export.export.time_engine", timed)
    few = SimpleNamespace(names=lambda: ["gguf", "hf", "onnx"])
    monkeypatch.setattr("attar.export.everything.TARGETS", few)


@pytest.mark.usefixtures("timed")
def test_all_targets_and_the_fastest(attar: Attar, tmp_path: Path) -> None:
    for package in ("xllamacpp", "onnxruntime_genai"):
        pytest.importorskip(package)
    save(press(decoder(), "q4_1", "int8-g32"), tmp_path / "minima")
    home = ("--home", str(tmp_path / "home"))
    alone = attar("export", str(tmp_path / "minima"), "--all", *home)
    assert alone.code == 0, alone.err
    assert "hf was left out" in alone.err
    assert "int4-g32-min" in alone.err
    save(press(decoder(), "int4-g32", "int8-g32"), tmp_path / "small")
    done = attar("export", str(tmp_path / "small"), "--all", *home)
    assert done.code == 0, done.err
    words = [line.split() for line in done.out.splitlines() if line.strip()]
    assert words[0] == ["p50", "p95", "first", "KL"]
    titles = ["target", "engine", "bytes", "tokens/s", "ms", "ms", "ms", "memory", "nats", "ppl"]
    assert words[1] == titles
    rows = {tuple(row[:2]): " ".join(row[4:9]) for row in words}
    assert rows["gguf", "llama-cpp"] == "300 3.33 6.67 7.51 250"
    assert rows["hf", "torch"] == "20.0 50.0 100 7.51 250"
    assert rows["onnx", "onnxruntime"] == rows["hf", "torch"]
    assert rows["onnx", "genai"] == "200 5.00 10.0 7.51 250"
    told = f"fastest here: gguf in llama-cpp, {tmp_path / 'home/exports/small/gguf'}"
    assert told in done.out


@pytest.mark.usefixtures("timed")
def test_the_demo_ends_in_the_fastest_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("xllamacpp")
    save(press(decoder(), "int4-g32", "int8-g32"), tmp_path / "demo")
    speed = {"tokens_per_second": Figure(value=30.0, unit="tokens/s")}
    original = StageReport(id="original", kind="original", key="k", figures=speed)
    name = str(tmp_path / "demo")
    report = Report(name=name, task="causal-lm", recipe={}, environment={}, stages=[original])
    ship(report, str(tmp_path / "home"))
    told = capsys.readouterr().out
    assert (
        "Fastest here: gguf in llama-cpp, 300 tokens/s, 10.0 times the original's in PyTorch"
        in told
    )
    assert told.rstrip().splitlines()[-1].startswith("It says: ")


def test_what_is_refused_says_what_is_held(attar: Attar, tmp_path: Path) -> None:
    save(press(decoder(), "nf4-g64"), tmp_path / "pressed")
    done = attar("export", str(tmp_path / "pressed"), "hf", "--out", str(tmp_path / "out"))
    assert done.code == 2
    assert "nf4-g64" in done.err
    assert "fp8-e4m3" in done.err
    assert not (tmp_path / "out").exists()


def test_classes_that_are_the_same_are_counted(attar: Attar, tmp_path: Path) -> None:
    save(tiny("bert", "classification"), tmp_path / "calm")
    done = attar("export", tmp_path / "calm", "hf", "--no-speed", "--home", tmp_path / "home")
    assert done.code == 0, done.err
    words = [line.split() for line in done.out.splitlines() if line.strip()]
    assert words[0] == ["p50", "p95", "first", "off", "same"]
    assert words[1][-3:] == ["memory", "by", "%"]
    [row] = [row for row in words if row[:2] == ["hf", "torch"]]
    assert row[-1] == "100.0"


def test_timing_that_fails_is_no_success(
    attar: Attar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise AttarError("it was killed")

    save(press(decoder(), "int4-g32", "int8-g32"), tmp_path / "pressed")
    home = ("--home", tmp_path / "home")
    assert attar("export", tmp_path / "pressed", "hf", "--no-speed", *home).code == 0
    monkeypatch.setattr("attar.export.export.time_engine", killed)
    done = attar("bench", tmp_path / "pressed", *home)
    assert (done.code, done.out) == (1, "")
    assert "hf in torch was left out: it was killed" in done.err
