"""Timing one model in a process of its own: `python -m attar.measure.probe '{"path": ...}'`.

Prints one line of JSON: figures, or an error. `attar.measure.speed` starts it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from attar.core.recipe import ModelSource
from attar.core.report import Figure
from attar.core.step import Task
from attar.data.batches import IGNORED, Batch
from attar.errors import AttarError
from attar.layers.exits import NAME, Exits
from attar.measure.engine_probe import latencies, peak_resident
from attar.models import Model, load
from attar.models.media import input_shape
from attar.models.model import inference

PREFILL, DECODED = 64, 24  # tokens of a decoder's prompt, and tokens that it writes after it
TEXT, BATCH = 128, 8  # tokens of a classifier's text, and texts at a time for its throughput
WARM_UP = 3  # tokens that a decoder writes before it is timed; others read each batch once
SECONDS = 4.0  # to spend on repeats, of each kind
REPEATS, LEAST = 5, 3  # at most so many repeats; at least so many tokens


@dataclass(frozen=True)
class Request:
    """What to time: a source of weights, the task, and what to compute with."""

    source: ModelSource
    task: Task
    threads: int | None
    precision: str
    device: str

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps({**self.__dict__, "source": self.source.model_dump()})

    @classmethod
    def from_json(cls, text: str) -> Request:
        """The request that `to_json` wrote."""
        plain = json.loads(text)
        return cls(**{**plain, "source": ModelSource.model_validate(plain["source"])})


def main() -> None:
    """Time what the first argument asks for, and print what came of it."""
    with redirect_stdout(sys.stderr):  # what libraries print must not stand in the JSON
        try:
            found = measure(Request.from_json(sys.argv[1]))
            answer: dict[str, Any] = {name: f.model_dump() for name, f in found.items()}
        except AttarError as error:
            answer = {"error": str(error)}
        except MemoryError:
            answer = {"error": "there is not enough memory"}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)


def measure(request: Request) -> dict[str, Figure]:
    """Load the model, warm up, time it, and read the peak of memory."""
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    # Weights in bf16 from the start: under autocast alone float32 weights would be made bf16
    # anew for every token, which is slower than float32 throughout.
    dtype = "bfloat16" if request.precision == "bf16" else request.source.dtype
    source = request.source.model_copy(update={"dtype": dtype})
    model = load(source, request.task)
    model.module.to(request.device)
    timer = _Timer(model, request)
    with inference(request.device, request.precision):
        found = timer.decoder() if request.task == "causal-lm" else timer.encoder()
    return {**found, "peak_memory": timer.peak()}


class _Timer:
    """One loaded model and the conditions it is timed under."""

    def __init__(self, model: Model, request: Request) -> None:
        self.model, self.device = model, torch.device(request.device)
        threads = torch.get_num_threads()
        where = "1 thread" if threads == 1 else f"{threads} threads"
        if self.device.type == "cuda":
            where = torch.cuda.get_device_name(self.device)
        held = str(next(model.module.parameters()).dtype).removeprefix("torch.")
        self.conditions = f"PyTorch, {where}, weights and arithmetic in {held}"
        if isinstance(getattr(model.module, NAME, None), Exits):
            self.conditions += (
                "; tokens drawn at random, which may leave earlier or later than text"
            )

    def decoder(self) -> dict[str, Figure]:
        """Greedy decoding of one text with a cache of keys and values."""
        prompt = random_ids(self.model, 1, fitting(self.model, PREFILL + DECODED) - DECODED)
        self._decode(prompt, WARM_UP)
        rounds = repeat(partial(self._decode, prompt, DECODED))
        tokens = [seconds for each in rounds for seconds in each]
        note = (
            f"batch 1, up to {DECODED} tokens after {prompt.shape[1]}, with a KV cache, after a "
            f"warm-up of {WARM_UP} tokens; {self.conditions}"
        )
        speed = median(len(each) / sum(each) for each in rounds)
        return {
            "tokens_per_second": Figure(value=speed, unit="tokens/s", note=note),
            **latencies(tokens, f"for each token; {note}"),
        }

    def encoder(self) -> dict[str, Figure]:
        """One text at a time for the latency, several for the throughput."""
        length = fitting(self.model, TEXT)
        found: dict[int, list[float]] = {}
        for count in (1, BATCH):
            texts = random_batch(self.model, count, length)
            self._forward(texts)
            found[count] = [s for each in repeat(partial(self._texts, texts)) for s in each]
        files = self.model.family.media is not None
        what = "images or sounds drawn at random" if files else f"texts of {length} tokens"
        note = f"{what}, after a warm-up of 1 batch; {self.conditions}"
        name, unit = ("rows_per_second", "rows/s") if files else ("texts_per_second", "texts/s")
        speed = Figure(value=BATCH / median(found[BATCH]), unit=unit, note=f"batch {BATCH}, {note}")
        return {
            name: speed,
            **latencies(found[1], f"batch 1, {note}"),
        }

    def peak(self) -> Figure:
        """The most memory that this process, or its part of a GPU, has held."""
        if self.device.type == "cuda":
            value = torch.cuda.max_memory_allocated(self.device)
            return Figure(value=value, unit="bytes", note="peak on the GPU")
        note = "peak resident memory of a fresh process: Python and PyTorch, loading, timing"
        return Figure(value=peak_resident(), unit="bytes", note=note)

    def _decode(self, prompt: Tensor, count: int) -> list[float]:
        """Seconds of each token after the prompt; fewer tokens where time runs out."""
        module, cache, ids = self.model.module, None, prompt.to(self.device)
        seconds: list[float] = []
        while len(seconds) <= count and (len(seconds) <= LEAST or sum(seconds) < SECONDS):
            start = self._now()
            out = module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            seconds.append(self._now() - start)
        return seconds[1:]

    def _texts(self, batch: Batch) -> list[float]:
        """Seconds of a few forward passes."""
        seconds: list[float] = []
        for _ in range(4):
            start = self._now()
            self._forward(batch)
            seconds.append(self._now() - start)
        return seconds

    def _forward(self, batch: Batch) -> None:
        self.model.module(**self.model.given(batch.to(self.device)))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def repeat(once: Callable[[], list[float]]) -> list[list[float]]:
    """Run again and again within the time there is, at least once."""
    start = time.perf_counter()
    found = [once()]
    while len(found) < REPEATS:
        spent = time.perf_counter() - start
        if spent + spent / len(found) > SECONDS:
            break
        found.append(once())
    return found


def fitting(model: Model, length: int) -> int:
    """As many tokens, or as many as the model has places for."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or length + 2
    return min(length, limit - 2)  # RoBERTa counts places from behind its padding


def random_batch(model: Model, rows: int, length: int) -> Batch:
    """What the model takes in, drawn at random, always the same, and nothing to judge it by."""
    media = None
    if model.family.media is not None:
        generator = torch.Generator().manual_seed(0)
        media = torch.randn(rows, *input_shape(model.config), generator=generator)
    text = model.vocabulary > 0
    ids = random_ids(model, rows, length) if text else torch.zeros(rows, 1, dtype=torch.long)
    return Batch(ids, torch.ones_like(ids), torch.full((rows,), IGNORED), media=media)


def random_ids(model: Model, rows: int, length: int) -> Tensor:
    """Token ids, always the same ones, without the special ones."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = getattr(model.tokenizer, "tokenizer", model.tokenizer)
    special = set(tokenizer.all_special_ids) | {getattr(model.config, "pad_token_id", None)}
    usual = torch.tensor([i for i in range(model.vocabulary) if i not in special])
    return usual[torch.randint(len(usual), (rows, length), generator=generator)]


if __name__ == "__main__":
    main()
