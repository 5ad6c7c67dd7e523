"""Timing one engine on one model in a process of its own, which imports nothing that it need not.

Prints one line of JSON: figures, or an error. `attar.measure.engines` starts it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from attar.core.report import Figure
from attar.errors import AttarError
from attar.runtimes import find
from attar.runtimes.runtime import Decoder, Encoder

ROUNDS = 5
SECONDS = 6.0  # to spend on rounds
WARM_UP = 8  # tokens that a decoder writes before it is timed
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class EngineRequest:
    """What to time: a folder, its engine, rows of token ids, threads, and tokens to write."""

    folder: str
    engine: str
    ids: list[list[int]]
    threads: int | None
    tokens: int

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EngineRequest:
        """The request that `to_json` wrote."""
        return cls(**json.loads(text))


def main() -> None:
    """Time what the first argument asks for, and print what came of it."""
    with redirect_stdout(sys.stderr):  # what libraries print must not stand in the JSON
        try:
            found = measure(EngineRequest.from_json(sys.argv[1]))
            answer: dict[str, Any] = {name: f.model_dump() for name, f in found.items()}
        except AttarError as error:
            answer = {"error": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)


def measure(request: EngineRequest) -> dict[str, Figure]:
    """Open the model, warm up, time it, and read the peak of memory."""
    engine = find(request.engine)
    start = time.perf_counter()
    with engine.open(Path(request.folder), request.threads) as opened:
        loading = time.perf_counter() - start
        where = f"{request.threads} threads" if request.threads else "the engine's own threads"
        where = f"{engine.version()}, {where.replace('1 threads', '1 thread')}"
        if isinstance(opened, Decoder):
            found = _decoder(opened, request, where)
        else:
            found = _encoder(opened, request, where)
    note = "peak resident memory of a fresh process: Python, the engine, loading, timing"
    return {
        **found,
        "load": Figure(value=loading, unit="s", note=where),
        "peak_memory": Figure(value=peak_resident(), unit="bytes", note=note),
    }


def _decoder(opened: Decoder, request: EngineRequest, where: str) -> dict[str, Figure]:
    """Greedy decoding of one prompt, a round after another, each with a prompt of its own."""
    prompt = request.ids[0]
    _written(opened, prompt, WARM_UP)
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while not rounds or (len(rounds) < ROUNDS and time.perf_counter() - start < SECONDS):
        turn = len(rounds) % len(prompt)  # another text each time: none is served from a cache
        rounds.append(_written(opened, [*prompt[turn + 1 :], *prompt[: turn + 1]], request.tokens))
    note = f"batch 1, up to {request.tokens} tokens after {len(prompt)}, greedy; {where}"
    return _of_rounds([each for each in rounds if each], note)


def _of_rounds(rounds: list[list[float]], note: str) -> dict[str, Figure]:
    """Nothing of tokens that were not written: a model may end its answer at the first."""
    found: dict[str, Figure] = {}
    longer = [each for each in rounds if len(each) > 1]
    if longer:
        speed = median((len(each) - 1) / sum(each[1:]) for each in longer)
        found["tokens_per_second"] = Figure(value=speed, unit="tokens/s", note=note)
    if rounds:
        first = median(each[0] for each in rounds)
        found["first_token"] = Figure(value=first * 1000, unit="ms", note=note)
    if longer:
        found |= latencies([s for each in longer for s in each[1:]], f"for each token; {note}")
    return found


def _written(opened: Decoder, prompt: Sequence[int], count: int) -> list[float]:
    """Seconds until each token is there; the first waits for the prompt to be read."""
    seconds: list[float] = []
    before = time.perf_counter()
    for _ in opened.generate(prompt, count):
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    return seconds


def _encoder(opened: Encoder, request: EngineRequest, where: str) -> dict[str, Figure]:
    """One text at a time for the latency, all of them for the throughput."""
    rows = np.array(request.ids, np.int64)
    found: dict[int, list[float]] = {}
    for count in (1, len(rows)):
        texts = np.ascontiguousarray(rows[:count])
        opened.run(texts, np.ones_like(texts))
        found[count] = _repeated(opened, texts)
    note = f"texts of {rows.shape[1]} tokens, after a warm-up; {where}"
    speed = len(rows) / median(found[len(rows)])
    return {
        "texts_per_second": Figure(value=speed, unit="texts/s", note=f"batch {len(rows)}, {note}"),
        **latencies(found[1], f"batch 1, {note}"),
    }


def _repeated(opened: Encoder, texts: Any) -> list[float]:
    seconds: list[float] = []
    mask = np.ones_like(texts)
    while len(seconds) < 4 * ROUNDS and (len(seconds) < 3 or sum(seconds) < SECONDS / 2):
        start = time.perf_counter()
        opened.run(texts, mask)
        seconds.append(time.perf_counter() - start)
    return seconds


def latencies(seconds: list[float], note: str) -> dict[str, Figure]:
    """The median and the 95th percentile, in milliseconds."""
    high = quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
    return {
        "latency_p50": Figure(value=median(seconds) * 1000, unit="ms", note=note),
        "latency_p95": Figure(value=high * 1000, unit="ms", note=note),
    }


def peak_resident() -> int:
    """Bytes that this process held at most, since it was started.

    Not `ru_maxrss` on Linux: a process inherits that from whoever started it.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
