"""`accelerate launch -m attar run`: the processes train together, and one speaks and judges."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from attar.cli import launched
from cli.calling import Attar, plain_recipe

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
LAUNCH += ["--multi_gpu"]  # Accelerate's word for several processes: `--cpu` starts only one
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
LAUNCH += ["--num_cpu_threads_per_process", "1", "--main_process_port", "0", "-m"]
STEPS = [
    {"quantize/rtn": {"id": "rounded", "grid": "int8-channel"}},
    {"prune/depth": {"id": "shallower", "remove": 1, "sequences": 4, "length": 16}},
    {"adapt/full": {"id": "trained", "steps": 4, "batch": 2, "length": 16}},
]


def launch(folder: Path, recipe: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run a recipe on two processes; one that hangs fails the test."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), "utf-8")
    command = [*LAUNCH, "attar", "run", str(path), "--home", str(folder / "home")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "240"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "home" / "runs" / "small" / "report.json").read_text("utf-8"))


def test_two_processes_train_and_one_speaks(model: Path, data: Path, tmp_path: Path) -> None:
    steps = STEPS[1:]
    trackers = ["tensorboard"]
    recipe = plain_recipe(model, data, steps=steps, trackers=trackers, guard={"perplexity": 1e9})
    done = launch(tmp_path, recipe)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report.json") == 1
    assert done.stderr.count("[2/3] shallower (prune/depth)") == 1
    assert done.stderr.count("training") == 1
    report = report_of(tmp_path)
    assert report["finished"]
    assert report["environment"]["processes"] == 2
    trained = report["stages"][-1]
    assert trained["notes"]["tokens"] == 2 * 4 * 2 * 16  # of both
    assert (tmp_path / "home" / "runs" / "small" / "model").exists()
    assert not list((tmp_path / "home" / "drafts").iterdir())


def test_the_guard_ends_all_of_them(model: Path, data: Path, tmp_path: Path) -> None:
    recipe = plain_recipe(model, data, steps=STEPS[2:], guard={"perplexity": 0.01})
    done = launch(tmp_path, recipe)
    assert done.returncode != 0
    assert done.stderr.count("error: stage 'trained' is outside its bound") == 1
    assert "exitcode  : 3 " in done.stderr  # what the launcher says of the first one that failed
    assert done.stdout.count("OUTSIDE") == 1
    assert report_of(tmp_path)["stages"][-1]["verdict"]["status"] == "outside"


def test_of_several_one_has_the_word(
    attar: Attar, recipe: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(launched.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    launched.give_way()
    assert len(waited) == 1
    assert attar("run", recipe, "--home", ran).out == ""
    monkeypatch.setenv("RANK", "0")
    launched.give_way()
    assert len(waited) == 1
    assert "perplexity" in attar("run", recipe, "--home", ran).out
