"""Errors become one message and an exit code, in one place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from attar.errors import (
    GuardFailed,
    MissingPackage,
    Problem,
    RecipeError,
    StoreError,
    UserError,
)
from cli.calling import Attar

ENTRIES = "attar.core.registry.entries"


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(ENTRIES, fail)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("that way"), 2, "error: that way\n"),
        (StoreError("the disk is full"), 1, "error: the disk is full\n"),
        (GuardFailed("outside"), 3, "error: outside\n"),
        (MissingPackage("this", "pip install x"), 2, "Run: pip install x"),
        (RecipeError([Problem("one", "r.yaml", 3)]), 2, "error: r.yaml:3: one\n"),
        (MemoryError(), 1, "memory ran out"),
        (KeyboardInterrupt(), 130, "stopped. The same command goes on where it was"),
    ],
)
def test_errors_have_a_message_and_a_code(
    attar: Attar, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    failing(monkeypatch, error)
    done = attar("list")
    assert done.code == code
    assert said in done.err
    assert "Traceback" not in done.err


def test_several_problems_have_a_line_each(attar: Attar, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, RecipeError([Problem("one", "r.yaml", 3), Problem("two", "r.yaml", 5)]))
    lines = attar("list").err.splitlines()
    assert lines[0].startswith("error: 2 things are wrong")
    assert lines[1:] == ["  r.yaml:3: one", "  r.yaml:5: two"]


@pytest.mark.parametrize("option", [["--home", "kept"], ["--home=kept"]])
def test_a_bug_says_so_and_keeps_its_traceback(
    attar: Attar, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: list[str]
) -> None:
    def fail(home: str) -> None:
        raise ZeroDivisionError("too small")

    monkeypatch.setattr("attar.cli.kept.run_names", fail)
    done = attar("show", "x", *option)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1
    assert "bug of Attar" in done.err
    assert "ZeroDivisionError: too small" in done.err
    assert "--debug" in done.err
    (kept,) = (tmp_path / "kept" / "errors").iterdir()
    assert str(kept) in done.err
    assert "Traceback" in kept.read_text("utf-8")
    assert "torch" in kept.read_text("utf-8")


def test_debug_shows_the_traceback(attar: Attar, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, UserError("that way"))
    for words in (["--debug", "list"], ["list", "--debug"]):
        done = attar(*words)
        assert done.code == 2
        assert "Traceback" in done.err
        assert done.err.endswith("error: that way\n")


def test_control_characters_do_not_reach_the_terminal(
    attar: Attar, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, UserError("a\x1b[2Jb"))
    assert "\x1b" not in attar("list").err


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    program = "import sys; from attar.cli.main import main; sys.exit(main(['list']))"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_without_a_word_the_help_is_shown(attar: Attar) -> None:
    done = attar()
    assert done.code == 0
    assert "quantize" in done.out
    assert attar("-h").out == attar("--help").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quantise"], ["quantise", "did you mean 'quantize'", "`attar --help`"]),  # W36
        (["run"], ["RECIPE", "`attar run --help`"]),
        (["run", "r.yaml", "--hmoe", "x"], ["--hmoe", "--home"]),
        (["list", "quantise"], ["did you mean 'quantize'"]),
        (["report", "x", "--language", "fr"], ["'fr'", "en, zh"]),
    ],
)
def test_wrong_words(attar: Attar, words: list[str], said: list[str]) -> None:
    done = attar(*words)
    assert done.code == 2
    assert all(part.lower() in done.err.lower() for part in said), done.err


def test_list_knows_families(attar: Attar) -> None:
    done = attar("list", "quantize")
    assert "quantize/gptq" in done.out
    assert "adapt" not in done.out
