"""Runs: made once, gone on with after a kill, refused when they collapse."""

from __future__ import annotations

import copy
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from attar.core.recipe_file import build
from attar.engine import make as making
from attar.engine.plan import make_plan
from attar.engine.run import run
from attar.engine.store import Store
from attar.errors import GuardFailed, PlanError, StoreError
from attar.models import save


def test_three_kinds_of_steps_make_a_model_that_loads(plain: dict[str, Any], tmp_path: Path):
    done = run(plain, home=tmp_path)
    assert [stage.id for stage in done.report.stages] == [
        "original",
        "shallower",
        "healed",
        "small",
    ]
    assert done.report.finished
    assert len(done.load().blocks) == 2
    sizes = [stage.figures["size"].value for stage in done.report.stages]
    assert sizes[3] < sizes[2] == sizes[1] < sizes[0]
    assert done.report.stages[3].simulated
    assert (done.folder / "model").resolve() == done.path.resolve()


def test_a_second_run_makes_nothing(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = run(plain, home=tmp_path)

    def refuse(*_: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("attar.engine.run.make", refuse)
    second = run(plain, home=tmp_path)
    assert [s.figures for s in second.report.stages] == [s.figures for s in first.report.stages]


def test_changing_a_step_makes_it_and_later_ones_again(plain: dict[str, Any], tmp_path: Path):
    plain["steps"].insert(1, {"prune/depth": {"remove": 1, "sequences": 4, "length": 16}})
    plain["guard"]["may_dip"].append("depth")
    before = run(plain, home=tmp_path)
    plain["steps"][2]["distill/logits"]["learning_rate"] = 1e-5
    after = run(plain, home=tmp_path)
    assert [stage.cached for stage in after.report.stages[1:]] == [True, True, False, False]
    same = [a.key == b.key for a, b in zip(before.report.stages, after.report.stages, strict=True)]
    assert same == [True, True, True, False, False]


def test_an_id_is_in_no_key(plain: dict[str, Any], tmp_path: Path):
    before = run(plain, home=tmp_path)
    plain["steps"][1]["distill/logits"]["id"] = "other"
    after = run(plain, home=tmp_path)
    assert [stage.key for stage in before.report.stages] == [
        stage.key for stage in after.report.stages
    ]


def test_a_collapse_is_refused_and_marked(plain: dict[str, Any], tmp_path: Path):
    plain["guard"] = {"perplexity": 0.01}
    with pytest.raises(GuardFailed, match="shallower"):
        run(plain, home=tmp_path)
    report = json.loads((tmp_path / "runs" / "tiny" / "report.json").read_text())
    assert report["stages"][-1]["verdict"]["status"] == "outside"
    assert not report["finished"]
    assert not (tmp_path / "runs" / "tiny" / "model").exists()


def test_a_full_disk_leaves_no_half_artifact(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = 0

    def full(model: Any, folder: Path) -> None:
        nonlocal calls
        calls += 1
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(making, "save", full)
    with pytest.raises(StoreError, match="disk is full"):
        run(plain, home=tmp_path)
    assert calls == 1
    assert not list((tmp_path / "store").iterdir())
    assert not list((tmp_path / "drafts").iterdir())


def test_trackers_write_to_the_runs_folder_a_folder_a_stage(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("tensorboard")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    plain["trackers"] = ["tensorboard"]
    plain["steps"].insert(2, {"adapt/full": {"steps": 2, "batch": 4, "length": 16}})
    run(plain, home=tmp_path / "home")
    followed = (tmp_path / "home" / "runs" / "tiny" / "trackers").iterdir()
    events = {folder.name.split("-")[0]: list(folder.rglob("events.*")) for folder in followed}
    assert events.keys() == {"healed", "full"}
    assert all(events.values())
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_plan_tells_of_trackers_and_all_else_together(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("attar.train.trackers.find_spec", lambda name: None)
    plain |= {"trackers": ["tensorboard", "wandb"], "memory": 1e-9}
    with pytest.raises(PlanError) as caught:
        run(plain, home=tmp_path)
    told = [problem.message for problem in caught.value.problems]
    assert len(told) == 3
    for part in ("trains the whole model", "attar[tensorboard]", "attar[wandb]"):
        assert part in " ".join(told)


def test_the_report_tells_of_the_device_and_the_processes(plain: dict[str, Any], tmp_path: Path):
    plain["steps"], plain["guard"] = [], {}
    environment = run(plain, home=tmp_path).report.environment
    assert (environment["device"], environment["processes"]) == ("cpu", 1)


def test_the_loser_of_a_race_discards_its_draft(tmp_path: Path):
    store = Store(tmp_path)
    store.prepare()
    with store.draft("key") as first:
        (first / "file").write_text("first")
        other = tmp_path / "store" / "key"
        other.mkdir()
        (other / "file").write_text("other")
    assert (store.path("key") / "file").read_text() == "other"
    assert not list((tmp_path / "drafts").iterdir())


def test_drafts_of_dead_processes_are_removed(tmp_path: Path):
    store = Store(tmp_path)
    store.prepare()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "drafts" / f"key.{dead.pid}").mkdir()
    (tmp_path / "drafts" / f"key.{os.getpid()}").mkdir()
    store.prepare()
    assert [p.name for p in (tmp_path / "drafts").iterdir()] == [f"key.{os.getpid()}"]


def test_a_tokenizer_with_several_chat_templates_is_published_whole(
    plain: dict[str, Any], tmp_path: Path
):
    """transformers keeps all but the usual one in a folder beside it."""
    model = tiny_models.tiny("llama")
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    save(model, tmp_path / "model")
    plain |= {"model": str(tmp_path / "model"), "steps": [{"quantize/rtn": {}}]}
    del plain["guard"]
    done = run(plain, home=tmp_path / "home")
    assert done.load().tokenizer.chat_template == model.tokenizer.chat_template
    store = Store(tmp_path / "home")
    store.verify(done.path.name)
    (more,) = done.path.glob("*/*.jinja")
    more.write_text("{{ 3 }}")
    with pytest.raises(StoreError, match=r"tool_use.jinja is not what was written"):
        store.verify(done.path.name)


def test_what_is_made_is_not_asked_for_memory_again_nor_chosen_anew(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    thinned = {"prune/magnitude": {"sparsity": 0.2}}
    plain["steps"] = [thinned, {"heal/auto": {"tokens": 1024, "length": 16, "id": "h"}}]
    plain["guard"] = {"enabled": False}
    first = run(plain, home=tmp_path)
    monkeypatch.setattr("attar.engine.plan.free_memory", lambda: 1)
    again = run(plain, home=tmp_path)
    assert [(s.kind, s.key) for s in again.report.stages] == [
        (s.kind, s.key) for s in first.report.stages
    ]
    assert all(stage.cached for stage in again.report.stages[1:])
    fresh = make_plan(build(plain), Store(tmp_path / "fresh"))  # nothing is made there yet
    assert fresh.stages[-1].kind == "heal/blockwise" != first.report.stages[-1].kind
    plain["steps"][1] = {"heal/lora": plain["steps"][1].pop("heal/auto")}
    with pytest.raises(PlanError, match="trains the whole model and needs about"):
        make_plan(build(plain), Store(tmp_path / "fresh"))
