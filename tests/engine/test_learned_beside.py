"""Adapters, prompts and heads through the engine: run, measured, loaded, and planned upon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import attar
import tiny_models
from attar.errors import PlanError
from attar.models import save

SHORT: dict[str, Any] = {"steps": 3, "batch": 4, "length": 16, "learning_rate": 0.02}


@pytest.mark.parametrize(
    "step",
    [
        {"adapt/lora": {**SHORT, "leaves": "adapter"}},
        {"prompt/prefix": {**SHORT, "size": 3}},
        {"distill/logits": {**SHORT, "update": {"soft": {"size": 3}}}},
    ],
    ids=lambda step: next(iter(step)),
)
def test_what_is_left_beside_the_weights(
    step: dict[str, Any], plain: dict[str, Any], tmp_path: Path
) -> None:
    plain["steps"] = [{"prune/magnitude": {"scope": ["blocks[0] & mlp"]}}, step]
    if "adapt/lora" in step:
        plain["steps"] = [step]
    plain["guard"] = {"perplexity": 100.0}
    run = attar.run(plain, home=tmp_path)
    before, after = run.report.stages[-2], run.report.stages[-1]
    assert after.verdict.status == "good"
    assert after.figures["perplexity"].value != before.figures["perplexity"].value
    assert attar.run(plain, home=tmp_path).report.stages[-1].cached
    on_top = {**plain, "model": str(run.path), "steps": [{"quantize/rtn": {}}]}
    with pytest.raises(PlanError, match="not adapter, but the original left"):
        attar.plan(on_top, home=tmp_path)


def test_heads_for_several_tasks(tmp_path: Path) -> None:
    def rows(name: str, labels: tuple[str, ...], count: int) -> str:
        lines = [f"{text}\t{labels[n % len(labels)]}" for n, text in enumerate(texts(count))]
        path = tmp_path / f"{name}.tsv"
        path.write_text("text\tlabel\n" + "\n".join(lines) + "\n", "utf-8")
        return str(path)

    def texts(count: int) -> list[str]:
        return tiny_models.texts(count, 8, seed=count)

    save(tiny_models.tiny("bert", "classification"), tmp_path / "model")
    moods = ("calm", "wild")
    recipe: dict[str, Any] = {
        "model": str(tmp_path / "model"),
        "data": {
            "mood": rows("mood", moods, 30),  # first, and all the same not the model's own
            "train": rows("train", tiny_models.LABELS, 31),
            "dev": rows("dev", tiny_models.LABELS, 12),
            "test": rows("test", tiny_models.LABELS, 13),
            "mood-dev": rows("mood-dev", moods, 14),
        },
        "steps": [
            {"adapt/tasks": {**SHORT, "others": ["mood"], "others_held_out": ["mood-dev"]}},
            {"quantize/rtn": {}},
        ],
        "measures": {"sequences": 8, "length": 16, "speed": False},
        "guard": {"enabled": False},
        "precision": "float32",
    }
    run = attar.run(recipe, home=tmp_path / "home")
    assert {"accuracy of train", "accuracy of mood"} <= run.report.stages[1].notes.keys()
    assert attar.load(run.path).labels == tiny_models.LABELS
    assert attar.load(run.path, head="mood").labels == moods
