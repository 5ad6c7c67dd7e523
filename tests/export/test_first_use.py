"""What a server runs: the fastest export that is there, or one that is made on first use."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attar.errors import ExportError, Problem, UserError
from attar.export import first_use
from attar.export.artifact import find_artifact
from attar.export.export import default_folder, draft_of
from attar.export.first_use import Choice, Wish, chooses, fastest
from attar.export.record import RECORD
from attar.measure.machine import cores, processor
from attar.models import Files, load, save
from attar.runtimes import engine_of, find
from attar.runtimes.torch import TorchEncoder
from export.decoders import decoder
from tiny_models import press, tiny

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino_tokenizers")
FILES = {"gguf": "model.gguf", "onnx": "model.onnx", "openvino": "openvino_model.xml"}
READERS = {"gguf": "llama-cpp", "onnx": "onnxruntime", "openvino": "openvino", "hf": "torch"}
HERE = {"processor": processor(), "cores": cores()}


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going through all that a test run has made takes seconds."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """A classifier on a grid."""
    (tmp_path / "kinds").mkdir()
    save(press(tiny("bert", "classification"), "int8-g32"), tmp_path / "kinds")
    return tmp_path / "kinds"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The targets that were exported to; no engine's own files are written."""
    found: list[str] = []

    def export(ref: str, target: str, folder: Path, home: Path, *_: Any) -> None:
        found.append(target)
        put(ref, target, home, folder)

    monkeypatch.setattr(first_use, "export", export)
    return found


def put(ref: object, target: str, home: Path, folder: Path | None = None, **record: Any) -> Path:
    """A folder as an export leaves it."""
    artifact = find_artifact(str(ref), home)
    usual: dict[str, Any] = {
        "source": artifact.source,
        "stamp": artifact.stamp,
        "format": 2,
        "bytes": 1,
        "grids": {},
        "target": target,
        "reads_with": READERS[target],
        "environment": HERE,
        "rounded": {},
    }
    with draft_of(folder or default_folder(home, artifact.name, target)) as draft:
        (draft / FILES.get(target, "model.safetensors")).touch()
        (draft / "config.json").touch()
        (draft / RECORD).write_text(json.dumps({**usual, **record}))
    return folder or default_folder(home, artifact.name, target)


def speed(value: float, name: str = "texts_per_second") -> dict[str, Any]:
    return {"speed": {name: {"value": value, "unit": "texts/s"}}}


def untimed(target: str, path: Path, home: Path) -> str:
    """Why a target is taken before all are timed, and what times them."""
    command = f"attar export {path} --all --home {home}"
    return f"not all are timed here, and {target} comes first. `{command}` times them"


def chosen(path: Path, home: Path, **wish: Any) -> Choice:
    found = fastest(str(path), home, Wish(**wish))
    assert found is not None
    return found


def test_what_is_made_on_first_use_answers_as_the_model(kinds: Path, home: Path) -> None:
    said: list[str] = []
    found = fastest(str(kinds), home, Wish(), said.append)
    assert found is not None
    assert (found.folder, found.engine) == (home / "exports" / "kinds" / "openvino", "openvino")
    assert said[0] == (
        "no export of kinds is there; exporting to openvino, likely the fastest of openvino, onnx"
    )
    assert len(said) > 2
    ids = np.full((1, 6), 9, np.int64)
    wanted = TorchEncoder(load(Files(kinds))).run(ids, np.ones_like(ids))
    with find("openvino").open(found.folder, 1) as opened:
        assert opened.run(ids, np.ones_like(ids)) == pytest.approx(wanted, abs=0.1)
    record = json.loads((found.folder / RECORD).read_text())
    assert record["verified"]["codes"]["layers"] > 0
    assert record["engines"]["openvino"].keys() == {"version", "outputs"}


def test_what_is_there_is_taken_and_nothing_made(kinds: Path, home: Path, made: list[str]) -> None:
    folder = put(kinds, "onnx", home)
    assert chosen(kinds, home).folder == folder
    assert made == []


def test_the_fastest_by_measurements_of_this_machine(
    kinds: Path, home: Path, made: list[str]
) -> None:
    put(kinds, "openvino", home, **speed(50))
    onnx = put(kinds, "onnx", home, **speed(80))
    found = chosen(kinds, home)
    assert (found.folder, found.engine) == (onnx, "onnxruntime")
    assert "measured fastest here, 80 a second" in found.why
    hf = put(kinds, "hf", home, **speed(90))
    assert chosen(kinds, home).engine == "torch"
    assert chosen(kinds, home, engine="openvino").engine == "openvino"
    elsewhere = {"environment": {**HERE, "cores": 1 + cores()}}
    put(kinds, "onnx", home, **speed(800), **elsewhere)
    put(kinds, "hf", home, hf, **speed(900), **elsewhere)
    assert chosen(kinds, home).engine == "openvino"
    put(kinds, "openvino", home, **elsewhere)
    found = chosen(kinds, home)
    assert (found.engine, found.why) == ("openvino", untimed("openvino", kinds, home))
    assert made == []


def test_pytorchs_own_export_alone_is_none(kinds: Path, home: Path, made: list[str]) -> None:
    put(kinds, "hf", home)
    assert chosen(kinds, home).engine == "openvino"
    assert made == ["openvino"]


def test_not_what_is_rounded_or_of_another_model(
    kinds: Path, home: Path, made: list[str], tmp_path: Path
) -> None:
    put(kinds, "onnx", home, rounded={"classifier": {"to": "int8-g32"}})
    put(kinds, "hf", home, reads_with="an engine of tomorrow", **speed(99))
    (put(kinds, "gguf", home) / RECORD).write_text("{")
    first = chosen(kinds, home)
    assert (made, first.engine) == (["openvino"], "openvino")
    other = tmp_path / "elsewhere" / "kinds"
    shutil.copytree(kinds, other)
    second = chosen(other, home)
    assert made == ["openvino"] * 2
    assert second.folder is not None
    assert second.folder.parent.name.startswith("kinds-")
    assert chosen(kinds, home) == first
    assert chosen(other, home) == second
    text = (kinds / "config.json").read_text()
    (kinds / "config.json").write_text(text + "\n")  # the model was written anew
    assert chosen(kinds, home).folder == first.folder
    assert made == ["openvino"] * 3


def test_an_artifacts_exports_are_found_by_its_key(
    kinds: Path, home: Path, made: list[str], tmp_path: Path
) -> None:
    key = "abcdef0123456789"
    (home / "store").mkdir()
    shutil.copytree(kinds, home / "store" / key)
    run = home / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "model").symlink_to(home / "store" / key)
    (run / "report.json").write_text("{}")
    found = chosen(home / "store" / key, home)
    assert found.folder == home / "exports" / key[:12] / "openvino"
    (tmp_path / "moved").mkdir()
    home.rename(tmp_path / "moved" / "home")
    moved = chosen(tmp_path / "moved" / "home" / "store" / key, tmp_path / "moved" / "home")
    assert moved.folder is not None
    assert moved.folder.is_dir()
    assert made == ["openvino"]


def test_a_run_gives_its_name(kinds: Path, home: Path, made: list[str]) -> None:
    run = home / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "model").symlink_to(kinds)
    (run / "report.json").write_text("{}")
    assert chosen(run / "model", home).folder == home / "exports" / "mine" / "openvino"


def test_nothing_is_made_where_nothing_may_be(
    kinds: Path, home: Path, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "nowhere"
    assert "--home names another" in chosen(kinds, nowhere).why
    assert not nowhere.exists()
    assert "--no-export" in chosen(kinds, home, make=False).why
    monkeypatch.setattr(first_use.os, "access", lambda *_: False)
    assert "--home names another" in chosen(kinds, home).why
    assert made == []
    assert not list(home.iterdir())


def test_the_next_target_where_one_refuses_and_pytorch_where_all_do(
    kinds: Path, home: Path, monkeypatch: pytest.MonkeyPatch, made: list[str]
) -> None:
    export: Any = first_use.export

    def refusing(*names: str) -> None:
        def refuse(ref: str, target: str, *others: Any) -> None:
            if target in names:
                raise ExportError([Problem(f"{target} has no place for it")])
            if not names:
                raise RuntimeError("a fault of a writer's")
            export(ref, target, *others)

        monkeypatch.setattr(first_use, "export", refuse)

    refusing("openvino", "onnx")
    found = chosen(kinds, home)
    assert (found.folder, found.engine) == (None, None)
    assert "openvino: openvino has no place for it; onnx: onnx has no place" in found.why
    refusing()
    assert "openvino: RuntimeError: a fault of a writer's" in chosen(kinds, home).why
    refusing("openvino")
    assert chosen(kinds, home).engine == "onnxruntime"
    assert made == ["onnx"]


def test_two_at_once_make_one(
    kinds: Path, home: Path, monkeypatch: pytest.MonkeyPatch, made: list[str]
) -> None:
    export: Any = first_use.export
    said: list[str] = []
    waits = threading.Event()

    def slow(*given: Any) -> None:
        assert waits.wait(60)
        export(*given)

    def say(text: str) -> None:
        said.append(text)
        if "waiting" in text:
            waits.set()

    monkeypatch.setattr(first_use, "export", slow)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(fastest(str(kinds), home, Wish(), say)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(60)
    assert made == ["openvino"]
    assert found[0] == found[1]
    assert found[0].folder.is_dir()


def test_the_engine_that_is_named(kinds: Path, home: Path, made: list[str]) -> None:
    assert chosen(kinds, home, engine="onnxruntime").engine == "onnxruntime"
    assert made == ["onnx"]
    for engine in ("genai", "llama-cpp", "litert"):  # refused before any work
        assert chosen(kinds, home, engine=engine) == Choice(
            "it runs no export for classification. There are openvino, onnxruntime, torch"
        )
        with pytest.raises(UserError, match=f"{engine} does not run {kinds}: it runs no export"):
            chooses(str(kinds), home, Wish(engine))
    assert made == ["onnx"]
    with pytest.raises(UserError, match="no engine is called 'warp'"):
        chosen(kinds, home, engine="warp")


def test_what_a_named_engine_would_run_is_known_beforehand(
    kinds: Path, home: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise ExportError([Problem("it holds no such grid")])

    named = Wish("onnxruntime")
    assert chooses(str(kinds), home, named)
    assert not chooses(str(kinds), home, Wish("torch"))
    with pytest.raises(UserError, match="none may be made"):
        chooses(str(kinds), home, Wish("onnxruntime", make=False))
    monkeypatch.setattr(first_use, "check", refused)
    with pytest.raises(UserError, match="onnx: it holds no such grid"):
        chooses(str(kinds), home, named)
    put(kinds, "onnx", home)  # what is there already need not be made
    assert chooses(str(kinds), home, named)
    assert made == []


def test_an_engine_that_is_not_installed_is_named_with_its_command(
    kinds: Path, home: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine, extra in (("onnxruntime", "onnx"), ("openvino", "openvino")):
        monkeypatch.setattr(type(find(engine)), "installed", lambda self: False)
        command = f"pip install 'attar[{extra}]'"
        assert chosen(kinds, home, engine=engine).why.endswith(f"is installed: {command}")
    assert "attar[openvino]" in chosen(kinds, home).why
    assert made == []


def test_where_there_is_nothing_to_choose(
    kinds: Path, home: Path, made: list[str], tmp_path: Path
) -> None:
    assert fastest(str(kinds), home, Wish(engine="torch")) is None
    assert fastest("owner/name", home, Wish()) is None
    folder = put(kinds, "onnx", home)
    assert fastest(str(folder), home, Wish()) is None
    (tmp_path / "vectors").mkdir()
    save(tiny("bert"), tmp_path / "vectors")
    assert "it is for masked-lm" in chosen(tmp_path / "vectors", home).why
    assert "it is for classification" in chosen(kinds, home, task="embedding").why
    assert made == []


def test_decoders_have_an_order_of_their_own(home: Path, made: list[str], tmp_path: Path) -> None:
    for package in ("gguf", "xllamacpp"):
        pytest.importorskip(package)
    save(press(decoder(), "int4-g32", "int8-g32"), tmp_path / "writer")
    assert chosen(tmp_path / "writer", home).engine == "llama-cpp"
    assert made == ["gguf"]
    put(tmp_path / "writer", "openvino", home, **speed(9, "tokens_per_second"))
    assert "not all are timed" in chosen(tmp_path / "writer", home).why
    for rate, engine in ((5, "llama-cpp"), (4, "openvino")):  # one that writes several counts twice
        put(tmp_path / "writer", "gguf", home, **speed(rate, "tokens_per_second"))
        assert chosen(tmp_path / "writer", home).engine == engine


def test_the_fastest_of_the_engines_that_run_an_export(
    home: Path, made: list[str], tmp_path: Path
) -> None:
    for package in ("xllamacpp", "onnxruntime_genai"):
        pytest.importorskip(package)
    save(press(decoder(), "int4-g32", "int8-g32"), tmp_path / "writer")

    def onnx(**rates: float | None) -> None:
        """`None`: the engine ran it, and nobody timed it."""
        engines = {
            name: {} if rate is None else speed(rate, "tokens_per_second")
            for name, rate in rates.items()
        }
        folder = put(tmp_path / "writer", "onnx", home, engines=engines)
        (folder / "genai_config.json").touch()

    def found(**wish: Any) -> tuple[str | None, str]:
        told = chosen(tmp_path / "writer", home, **wish)
        return told.engine, told.why

    onnx(onnxruntime=60, genai=90)
    assert found() == ("genai", "measured fastest here, 90 a second")
    assert found(engine="onnxruntime") == ("onnxruntime", "measured fastest here, 60 a second")
    onnx(onnxruntime=60, genai=50)
    assert found()[0] == "onnxruntime"
    assert found(engine="genai") == ("genai", "measured fastest here, 50 a second")
    onnx(onnxruntime=60, genai=None)
    assert found() == ("onnxruntime", "measured fastest here, 60 a second")
    onnx(onnxruntime=None, genai=None)
    assert found() == ("onnxruntime", untimed("onnx", tmp_path / "writer", home))
    onnx(onnxruntime=60, tomorrows=900)
    assert found()[0] == "onnxruntime"
    onnx(onnxruntime=60, genai=90)
    put(tmp_path / "writer", "gguf", home, **speed(46, "tokens_per_second"))
    assert found()[0] == "llama-cpp"  # which writes several answers at once
    put(tmp_path / "writer", "gguf", home, **speed(44, "tokens_per_second"))
    assert found()[0] == "genai"
    assert made == []


def test_an_installed_engine_before_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attar.runtimes.genai import Genai

    (tmp_path / "model.onnx").touch()
    (tmp_path / "genai_config.json").touch()
    monkeypatch.setattr(Genai, "installed", lambda self: False)
    engine = engine_of(tmp_path)
    assert engine is not None
    assert engine.name == "onnxruntime"
