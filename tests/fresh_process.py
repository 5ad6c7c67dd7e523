"""What plain transformers makes of a saved model, in a process that never ran before."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attar.core.step import Task

WITHOUT_ATTAR = "sys.modules['attar'] = None  # any import of it fails"
REGISTERED = "import attar.transformers"
_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "classification": "AutoModelForSequenceClassification",
}
_CHILD = """
import json, sys
{first}
import torch, transformers
from safetensors.torch import load_file, save_file

torch.set_num_threads({threads})
for folder, name, given, found in json.loads(sys.argv[1]):
    model = getattr(transformers, name).from_pretrained(folder).eval()
    with torch.no_grad():
        save_file({{"logits": model(**load_file(given)).logits.contiguous()}}, found)
"""


@dataclass(frozen=True)
class Saved:
    """A model's folder, and what to ask the model."""

    folder: Path
    task: Task
    inputs: Mapping[str, Tensor]


def answers(saved: Mapping[str, Saved], first: str, scratch: Path) -> dict[str, Tensor]:
    """The logits of each model, all from one process whose first line of code is `first`."""
    jobs: list[list[str]] = []
    for number, one in enumerate(saved.values()):
        given, found = (str(scratch / f"{number}-{what}.safetensors") for what in ("in", "out"))
        save_file(dict(one.inputs), given)
        jobs.append([str(one.folder), _CLASSES[one.task], given, found])
    code = _CHILD.format(first=first, threads=torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(jobs)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {name: load_file(job[3])["logits"] for name, job in zip(saved, jobs, strict=True)}
