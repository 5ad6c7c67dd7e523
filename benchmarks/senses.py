"""Students that see and hear, with a teacher and without, over three seeds.

    python benchmarks/senses.py [--part clothes] [--part words] [--seed 0]

Clothes: a CLIP of two towers matches Fashion-MNIST's images with captions; its student has towers
of one narrow block. Words: an Audio Spectrogram Transformer tells eight words that espeak-ng spoke,
and is judged on voices that it never heard. Either student takes as many steps on the same rows by
the task's own loss alone. The models begin from nothing: no pretrained one is at hand.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _senses
import transformers

import attar
from attar.measure.machine import environment
from attar.models.blank import blank_towers

RESULT = Path(__file__).parent / "results" / "senses.json"
CAPTION = "a photo of a {label}"
TRAIN, TEST = 6000, 2000


def main() -> None:
    """Either part in turn; print and keep what the students became."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--seed", type=int, action="append")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    for part in args.part or PARTS:
        teacher = PARTS[part](None, 0)
        for seed in args.seed or (0, 1, 2):
            row = {"part": part, "seed": seed, "teacher": accuracy(teacher)}
            taught, alone = (PARTS[part](str(with_), seed) for with_ in (teacher.path, ""))
            row |= {"with": accuracy(taught), "without": accuracy(alone)}
            row["parameters"] = [
                done.report.stages[-1].figures["parameters"].value for done in (teacher, taught)
            ]
            row["seconds"] = [d.report.stages[-1].seconds for d in (teacher, taught, alone)]
            rows = [r for r in rows if (r["part"], r["seed"]) != (part, seed)] + [row]
            print(json.dumps(row), flush=True)
            RESULT.write_text(
                json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n"
            )


def clothes(teacher: str | None, seed: int) -> Any:
    """The teacher (None), or a student with it, or one without ("")."""
    data = _senses.clothes(TRAIN, TEST)
    texts = [CAPTION.replace("{label}", name) for name in _senses.CLASSES]
    large = teacher is None
    folder = _senses.HOME / ("clip-teacher" if large else "clip-student")
    seeing, reading = ((96, 4), (64, 2)) if large else ((32, 1), (32, 1))
    blank_towers(folder, texts, 28, _sizes(*reading), {**_sizes(*seeing), "patch_size": 7}, 64)
    own = {"adapt/full": {"epochs": 12 if large else 4, **TRAINING}}
    toward = {"distill/contrastive": {"epochs": 4, "teacher": teacher, **TRAINING}}
    return _run("clothes", data, folder, toward if teacher else own, seed)


def words(teacher: str | None, seed: int) -> Any:
    """The same of spoken words."""
    large = teacher is None
    folder = _senses.HOME / ("ast-teacher" if large else "ast-student")
    hearing = {"max_length": 96, "num_mel_bins": 64}
    hidden, blocks = (96, 4) if large else (32, 1)
    config = transformers.ASTConfig(
        **_sizes(hidden, blocks),
        **hearing,
        architectures=["ASTForAudioClassification"],
    )
    config.save_pretrained(folder)
    transformers.ASTFeatureExtractor(sampling_rate=22050, **hearing).save_pretrained(folder)
    own = {"adapt/full": {"epochs": 8 if large else 6, **TRAINING, "batch": 16}}
    weights = {"weight": 0.5, "temperature": 2.0, "teacher": teacher}
    toward = {"distill/logits": {"epochs": 6, **weights, **TRAINING, "batch": 16}}
    return _run("words", _senses.words(), folder, toward if teacher else own, seed)


PARTS = {"clothes": clothes, "words": words}
TRAINING = {"batch": 64, "learning_rate": 1e-3, "held_out": None, "id": "trained"}


def accuracy(done: Any) -> list[float]:
    """Points of 100, and the ends of the interval."""
    found = done.report.stages[-1].figures["accuracy"]
    return [found.value, found.low, found.high]


def _sizes(hidden: int, blocks: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": hidden // 16,
    }


def _run(name: str, data: Path, folder: Path, step: dict[str, Any], seed: int) -> Any:
    read = {"path": str(data), "format": "folder", "caption": CAPTION}
    kind = next(iter(step)).replace("/", "-")
    return attar.run(
        {
            "name": f"{name}-{folder.name}-{kind}-{seed}",
            "model": {"path": str(folder), "fresh": True},
            "data": {part: {**read, "split": part} for part in ("train", "test")},
            "seed": seed,
            "steps": [step],
            "measures": {"sequences": TEST, "batch": 100, "speed": False},
            "guard": {"enabled": False},
        },
        home=_senses.HOME / "home",
    )


if __name__ == "__main__":
    main()
