"""Data that a step makes, kept answers, a choice left to the plan and further held-out data, in
one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import attar
import tiny_models
from attar.engine import make as making

SHORT: dict[str, Any] = {"batch": 4, "length": 16}


@pytest.fixture
def recipe(plain: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    more = tmp_path / "more.txt"
    more.write_text("\n".join(tiny_models.texts(200, 12, seed=5)), "utf-8")
    train = plain["data"]
    plain["data"] = {name: {"path": train, "split": name} for name in ("train", "dev", "test")}
    plain["data"]["more"] = {"path": str(more)}
    plain["steps"] = [
        {"data/generate": {"id": "written", "texts": 24, "new_tokens": 24, "batch": 8}},
        {"prune/magnitude": {"id": "sparse"}},
        {"distill/logits": {**SHORT, "data": "written", "steps": 4, "cache": {"top": 8}}},
        {"quantize/rtn": {"grid": "int4-g32"}},
        {"heal/auto": {"tokens": 1024, "length": 16}},
    ]
    plain["measures"]["also"] = ["more"]
    plain["guard"] = {"enabled": False}
    return plain


def test_it_runs_goes_on_and_is_reported(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    publish = making.publish

    def killed(store: Any, key: str, write: Any, facts: dict[str, Any], made: Any) -> None:
        if facts["kind"] == "heal/scales":
            raise KeyboardInterrupt
        publish(store, key, write, facts, made)

    with monkeypatch.context() as patched:
        patched.setattr(making, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            attar.run(recipe, home=home)
    run = attar.run(recipe, home=home)
    stages = {stage.id: stage for stage in run.report.stages}
    assert list(stages) == ["original", "written", "sparse", "logits", "rtn", "auto"]
    assert [stage.cached for stage in stages.values()][1:] == [True, True, True, True, False]
    assert stages["auto"].kind == "heal/scales"
    assert stages["logits"].notes["teacher"]["rows asked"] > 0
    assert stages["written"].figures.keys() <= {"rows", "kept"}
    for name in ("sparse", "logits", "rtn", "auto"):
        assert {"perplexity", "perplexity on more", "forgetting"} <= stages[name].figures.keys()
    again = attar.run(run.folder / "lock.yaml", home=home)
    assert all(stage.cached for stage in again.report.stages[1:])
    assert [s.key for s in again.report.stages] == [s.key for s in run.report.stages]
    assert [s.figures for s in again.report.stages] == [s.figures for s in run.report.stages]
    planned = attar.plan(recipe, home=home)
    assert [stage.key for stage in planned.stages] == [s.key for s in run.report.stages]
    assert all(stage.cached for stage in planned.stages[1:])
