"""A teacher's answers in the store: shared by runs, and without the key of who gave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny_models
from attar.engine.run import run
from attar.errors import PlanError, RecipeError
from loopback import serving

KEY = "sk-very-secret"


def asked(plain: dict[str, Any], home: Path, **more: Any) -> int:
    """How many rows the teacher was asked about in a run."""
    plain["steps"], plain["guard"] = plain["steps"][:2], {"enabled": False}
    plain["steps"][1]["distill/logits"] |= {"cache": {"top": 8}, **more}
    done = run(plain, home=home, secret={"TEACHER_KEY": KEY}.get)
    return done.report.stages[-1].notes["teacher"]["rows asked"]


def test_runs_share_what_a_teacher_said(plain: dict[str, Any], tmp_path: Path) -> None:
    assert asked(plain, tmp_path) > 0
    assert asked(plain, tmp_path, learning_rate=1e-3) == 0
    assert asked(plain, tmp_path, temperature=2.0) == 0
    assert asked(plain, tmp_path, teacher="shallower") > 0


def test_the_key_of_a_server_is_kept_nowhere(plain: dict[str, Any], tmp_path: Path) -> None:
    settings = {"server": {"key": "TEACHER_KEY"}}
    with serving() as server:
        server.reply = tiny_models.behind(tiny_models.tiny("llama", seed=1))
        assert asked(plain, tmp_path, teacher=server.url, **settings) > 0
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert asked(plain, tmp_path, teacher=server.url, learning_rate=1e-3, **settings) == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not any(KEY.encode() in path.read_bytes() for path in files)


def test_steps_that_need_the_teacher_itself_refuse_an_address(
    plain: dict[str, Any], tmp_path: Path
) -> None:
    plain["steps"][1] = {"distill/hidden": {"teacher": "http://127.0.0.1:9/v1#m", "steps": 2}}
    with pytest.raises((PlanError, RecipeError), match="nor an existing path"):
        run(plain, home=tmp_path)
