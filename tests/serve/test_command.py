"""`attar serve`: mistakes are told before anything loads."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import attar.serve.run
from attar.cli.main import main
from attar.serve.run import bind
from attar.serve.settings import Limits, Settings


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
    assert main(["serve", *map(str, words)]) == 2
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
    monkeypatch.setattr(attar.serve.run, "serve", found.append)
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
