"""`attar serve`: mistakes are told before anything loads."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import attar.serve.run
from attar.cli.main import main
from attar.errors import ModelError, UserError
from attar.serve.run import bind
from attar.serve.settings import Limits, Settings, Source


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """The command sends logs to standard error, which is another one in the next test."""
    loggers = [logging.getLogger(name) for name in ("attar.serve", "uvicorn", "uvicorn.error")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["serve", *map(str, words), "--no-export"]) == 2
    return capsys.readouterr().err


def test_mistakes_are_told(
    capsys: pytest.CaptureFixture[str], folders: dict[str, Path], tmp_path: Path
):
    model = folders["writer"]
    assert "no API keys" in refused(capsys, model, "--host", "0.0.0.0")
    assert "there is no model at" in refused(capsys, tmp_path / "none", "--port", 0)
    assert "not NAME=VALUE with a NAME of body" in refused(capsys, model, "--limit", "size=3")
    assert "--limit context" in refused(capsys, model, "--limit", "context=1")
    assert "cannot be read" in refused(capsys, model, "--keys", tmp_path / "none")
    (tmp_path / "keys").write_text("# none\n")
    assert "holds no key" in refused(capsys, model, "--keys", tmp_path / "keys")
    assert "no engine is called 'warp'" in refused(capsys, model, "--engine", "warp", "--port", 0)
    twice = refused(capsys, model, model, "--engine", "warp", "--port", 0)
    assert "two models are called 'writer'" in twice
    for port in (99999, -1):
        assert "'--port'" in refused(capsys, model, "--port", port)
    for memory in ("1e400", "nan", "-1"):
        assert "give gigabytes, above 0" in refused(capsys, model, "--memory", memory)
    assert "'story' is none of causal-lm" in refused(capsys, model, "--task", "story")
    unknown = refused(capsys, model, "--host", "nowhere.invalid", "--anyone", "--port", 0)
    assert "Name another --host" in unknown
    assert "more than the 1 that" in refused(capsys, model, "--memory", 1e-9, "--port", 0)
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in refused(capsys, model, "--port", port)


def test_a_model_that_does_not_load_ends_the_command(
    capsys: pytest.CaptureFixture[str], folders: dict[str, Path], tmp_path: Path
):
    broken = tmp_path / "broken"
    shutil.copytree(folders["writer"], broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    said = refused(capsys, broken, "--port", 0)
    assert "error: " in said.splitlines()[-1] or "error: " in said
    assert "Traceback" not in said.splitlines()[-1]


def test_limits_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["serve", "any", "--limit", "help"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in Limits.model_fields)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What the server was told, instead of a server."""
    found: list[Settings] = []
    monkeypatch.setattr(attar.serve.run, "serve", lambda settings, prepare: found.append(settings))
    return found


def test_words_become_settings(
    given: list[Settings],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "keys").write_text("file-key-1\n# no\nfile-key-2\n")
    monkeypatch.setenv("ATTAR_API_KEYS", "from-outside")
    words = [
        "serve",
        folders["writer"],
        f"labels={folders['kinds']}",
        "--original",
        folders["writer"],
        "--keys",
        tmp_path / "keys",
        "--limit",
        "context=99",
        "--limit",
        "window=0.5",
        "--memory",
        2,
    ]
    assert main([str(word) for word in words]) == 0
    (settings,) = given
    assert [source.name for source in settings.models] == ["writer", "labels", "original"]
    assert [source.original for source in settings.models] == [False, False, True]
    assert set(settings.keys) == {"from-outside", "file-key-1", "file-key-2"}
    assert "from-outside" not in repr(settings)
    assert settings.limits == Limits(context=99, window=0.5)
    assert settings.memory == 2 * 10**9
    assert settings.host == "127.0.0.1"


def test_a_path_may_have_an_equals_sign_in_it(
    given: list[Settings], folders: dict[str, Path], tmp_path: Path
):
    place = tmp_path / "x=1" / "model"
    place.parent.mkdir()
    place.symlink_to(folders["writer"])
    for word, name in ((str(place), "model"), (f"mine={place}", "mine")):
        assert main(["serve", word, "--home", str(tmp_path)]) == 0
        assert (given[-1].models[0].name, given[-1].models[0].path) == (name, str(place))


def test_runs_and_keys_are_found(given: list[Settings], folders: dict[str, Path], tmp_path: Path):
    store = tmp_path / "store" / "abcdef123456"
    store.parent.mkdir()
    store.symlink_to(folders["writer"])
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "model").symlink_to(folders["writer"])
    (run / "report.json").write_text("{}")
    for word in ("mine", "abcd", run):
        assert main(["serve", str(word), "--home", str(tmp_path)]) == 0
    names = [settings.models[0].name for settings in given]
    assert names == ["mine", "abcdef123456", "mine"]


def test_the_fastest_export_takes_the_place_of_a_model_and_not_of_the_original(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    from attar.export import first_use
    from attar.export.first_use import Choice, Wish

    asked: list[Wish] = []
    found = {
        "writer": Choice("it is the fastest", tmp_path, "openvino"),
        "kinds": Choice("it is refused"),
    }

    def fastest(path: str, home: Path, wish: Wish, say: Any) -> Choice | None:
        asked.append(wish)
        assert home == tmp_path
        say("writing openvino")
        return found.get(Path(path).name)

    def serve(settings: Settings, prepare: Any) -> None:
        served.extend(prepare(settings.models))

    served: list[Source] = []
    monkeypatch.setattr(first_use, "fastest", fastest)
    monkeypatch.setattr(attar.serve.run, "serve", serve)
    words = ["serve", *(str(folders[name]) for name in ("writer", "kinds", "vectors"))]
    words += ["--original", str(folders["writer"]), "--home", str(tmp_path)]
    with caplog.at_level(logging.INFO, "attar.serve"):
        assert main(words) == 0
    paths = [source.path for source in served]
    assert paths == [str(tmp_path), *(str(folders[n]) for n in ("kinds", "vectors", "writer"))]
    assert [source.engine for source in served] == ["openvino", None, None, None]
    assert asked == [Wish()] * 3
    told = [(record.msg, record.facts) for record in caplog.records]  # pyright: ignore
    assert told[0] == ("exporting", {"model": "writer", "step": "writing openvino"})
    assert told[1][1]["why"] == "it is the fastest"
    assert told[3] == ("no export", {"model": "kinds", "reason": "it is refused"})
    assert main([*words, "--no-export"]) == 0
    assert asked[-1] == Wish(make=False)
    assert main(["serve", str(folders["kinds"]), "--home", str(tmp_path), "--engine", "gguf"]) == 2


def test_nothing_is_prepared_where_a_model_is_not_there(folders: dict[str, Path], tmp_path: Path):
    models = (
        Source(name="a", path=str(folders["writer"])),
        Source(name="b", path=str(tmp_path / "none")),
    )

    def prepare(_: Any) -> Any:
        raise AssertionError

    with pytest.raises(ModelError, match="there is no model at"):
        attar.serve.run.serve(Settings(models=models, port=0), prepare)


def test_nothing_is_exported_before_every_engine_is_known_to_run_its_model(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    pytest.importorskip("onnxruntime")
    from attar.export import first_use

    def export(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(first_use, "export", export)
    words = ["serve", str(folders["kinds"]), "--home", str(tmp_path), "--engine", "onnxruntime"]
    for other, said in (
        (folders["vectors"], "it is for masked-lm"),
        (folders["writer"], "heads of a multiple of 16"),
        (tmp_path / "none", "there is no model at"),
    ):
        assert main([*words, str(other)]) == 2
        assert said in capsys.readouterr().err


_SIGNALED = """
import os, signal, sys
import attar.cli.serve, attar.export.first_use, attar.serve.run
from attar.cli.main import main

def signaled(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    print("went on", name, flush=True)

async def loading(_):
    signaled()

before = signal.getsignal(signal.SIGTERM)
for place, name in (
    (attar.cli.serve, "_require"),  # before anything is imported
    (attar.export.first_use, "fastest"),  # while it exports
    (attar.serve.run, "Pool"),  # just before it listens
):
    usual = getattr(place, name)
    setattr(place, name, signaled)
    assert main(sys.argv[1:]) == 130, name
    assert signal.getsignal(signal.SIGTERM) == before
    setattr(place, name, usual)

name, attar.serve.run.Pool.start = "start", loading
assert main(sys.argv[1:]) == 0
"""


def test_sigterm_ends_the_command_whenever_it_comes(folders: dict[str, Path], tmp_path: Path):
    """In a process of its own: where it were not heeded it would end this one."""
    words = ["serve", str(folders["writer"]), "--port", "0", "--home", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", _SIGNALED, *words], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "went on start\n"  # the server drains
    events = [json.loads(line)["event"] for line in done.stderr.splitlines() if line[0] == "{"]
    assert events[-2:] == ["draining", "ended"]
    assert "Traceback" not in done.stderr


def test_a_port_that_another_server_took_meanwhile(folders: dict[str, Path]):
    """Two may bind it as long as neither listens, which is while they prepare their models."""
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]

        def prepare(sources: Any) -> Any:
            first.listen()
            return sources

        given = Settings(models=(Source(name="m", path=str(folders["writer"])),), port=port)
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}: .* in use"):
            attar.serve.run.serve(given, prepare)
