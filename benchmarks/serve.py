"""Fifty clients of one server for ten minutes, and what became of each of their requests.

    python benchmarks/serve.py [--model REF] [--engine NAME] [--minutes 10]

The model is that of `ship.py`, at 4 bits. Every prompt holds a marker of its own, which comes back,
and no other may. Each is asked alone first; under load its greedy answer must be the same, or part
from it only where the two best tokens were within 0.05 nats of each other. Meanwhile other clients
hang, vanish, and send 100 MB. In the end the server is killed under load and started again.
Throughput is that of all clients against the same requests one at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import ship

from attar.measure.machine import environment

HERE = Path(__file__).parent
TIE = 0.05  # nats
TOKENS = 64
MARKER = re.compile(r"K\d{6}")
TOPICS = ("a river", "an old clock", "the sea at night", "a lost key", "winter bread", "two trains")


@dataclass
class Record:
    """What came of the requests under load."""

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    tokens: int = 0
    same: int = 0
    ties: int = 0
    marked: int = 0
    parted: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    bad_clients: int = 0


@dataclass(frozen=True)
class Told:
    """An answer: its tokens, and how far the best two were apart at each."""

    tokens: tuple[str, ...]
    gaps: tuple[float, ...]
    seconds: float
    first: float

    def markers(self) -> set[str]:
        """Those of all prompts that stand in it."""
        return set(MARKER.findall("".join(self.tokens)))


class Served:
    """The command in a process of its own."""

    def __init__(self, model: str, engine: str | None, threads: int | None) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "attar", "serve", f"model={model}"]
        self._command += ["--home", str(ship.HOME)]
        self._command += ["--port", str(self.port), "--limit", "batch=50"]
        self._command += ["--engine", engine] if engine else []
        self._command += ["--threads", str(threads)] if threads else []
        self.start()

    def start(self) -> float:
        """Start it; seconds until it is ready."""
        begin = time.monotonic()
        self.process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        while time.monotonic() - begin < 300:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return time.monotonic() - begin
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with {self.process.returncode}")
            time.sleep(0.1)
        raise SystemExit("the server did not get ready")

    def resident(self) -> int:
        """Bytes of it in memory."""
        return psutil.Process(self.process.pid).memory_info().rss

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="by default what ship.py makes with --technique")
    parser.add_argument("--technique", default=ship.TECHNIQUE)
    parser.add_argument("--engine")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    given.model = given.model or ship.quantized(given.technique)
    served = Served(given.model, given.engine, given.threads)
    try:
        result = asyncio.run(measure(served, given))
        result["exit_code"] = served.stop()
    finally:
        served.process.kill()
    result = {"environment": environment(), "given": vars(given), **result}
    name = f"serve-{given.engine or 'default'}.json"
    (HERE / "results" / name).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


async def measure(served: Served, given: argparse.Namespace) -> dict[str, Any]:
    prompts = [prompt(number) for number in range(given.prompts)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=served.url, timeout=300, limits=limits) as client:
        engine = (await client.get("/v1/models")).json()["data"][0]["engine"]
        await ask(client, prompts[0])
        begin = time.monotonic()
        alone = [await ask(client, each) for each in prompts]
        if marked(alone) < 0.9 * len(alone):
            raise SystemExit(f"{marked(alone)} of {len(alone)} answers alone have their marker")
        seconds = time.monotonic() - begin
        pace = sum(len(each.tokens) for each in alone) / seconds
        record = Record()
        begin = time.monotonic()
        await under_load(served, client, prompts, alone, record, given)
        elapsed = time.monotonic() - begin
        restarted = await killed(served, client, prompts, alone)
    return {
        "engine": engine,
        "alone": {
            "tokens_per_second": pace,
            "with_their_marker": marked(alone),
            **spread([each.seconds for each in alone]),
        },
        "together": {
            "tokens_per_second": record.tokens / elapsed,
            "ratio": record.tokens / elapsed / pace,
            "requests": len(record.seconds),
            "same": record.same,
            "parted_at_a_tie": record.ties,
            "parted_elsewhere": counted(record.parted),
            "with_their_marker": record.marked,
            "mixed_up": record.mixed,
            "lost": record.lost,
            **spread(record.seconds),
            "first_token": spread(record.first),
        },
        "memory": memory(record),
        "bad_clients": record.bad_clients,
        "killed_and_restarted": restarted,
    }


def marker(number: int) -> str:
    """What no other prompt holds: these are not drawn, or two might be alike."""
    return f"K{(number * 15485863 + 271828) % 10**6:06d}"


def prompt(number: int) -> str:
    """A prompt with a marker that no other has, and that the answer begins with."""
    draw = random.Random(f"topics {number}")
    more = ", ".join(draw.choice(TOPICS) for _ in range(draw.randrange(1, 25)))
    return f"Repeat this sentence: The ticket {marker(number)} is about {more}."


async def ask(client: httpx.AsyncClient, text: str) -> Told:
    """A greedy answer, streamed. Raises what goes wrong."""
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
    }
    begin, first = time.monotonic(), 0.0
    tokens: list[str] = []
    gaps: list[float] = []
    ended = False
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise ValueError(f"status {answer.status_code}")
        async for line in answer.aiter_lines():
            ended = ended or line == "data: [DONE]"
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(event["error"]["message"])
            for choice in event["choices"]:
                for each in (choice["logprobs"] or {}).get("content", ()):
                    first = first or time.monotonic()
                    tokens.append(each["token"])
                    best = [top["logprob"] for top in each["top_logprobs"]]
                    gaps.append(best[0] - best[1] if len(best) > 1 else math.inf)
    if not ended:
        raise ValueError("the stream broke off")
    return Told(tuple(tokens), tuple(gaps), time.monotonic() - begin, first - begin)


async def under_load(
    served: Served,
    client: httpx.AsyncClient,
    prompts: Sequence[str],
    alone: Sequence[Told],
    record: Record,
    given: argparse.Namespace,
) -> None:
    until = time.monotonic() + 60 * given.minutes

    async def one(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < until:
            number = draw.randrange(len(prompts))
            try:
                told = await ask(client, prompts[number])
            except (httpx.HTTPError, ValueError) as error:
                record.lost.append(f"{prompts[number][:30]}: {error!r}")
                continue
            judge(told, number, alone, record)

    async def watch() -> None:
        begin = time.monotonic()
        while time.monotonic() < until:
            record.memory.append((time.monotonic() - begin, served.resident()))
            await asyncio.sleep(1)

    bad = asyncio.create_task(misbehave(served.port, record))
    await asyncio.gather(watch(), *(one(seed) for seed in range(given.clients)))
    bad.cancel()


def judge(told: Told, number: int, alone: Sequence[Told], record: Record) -> None:
    """Whether an answer is its own prompt's."""
    record.seconds.append(told.seconds)
    record.first.append(told.first)
    record.tokens += len(told.tokens)
    mine = alone[number]
    record.marked += told.markers() == {marker(number)}
    strange = told.markers() - mine.markers() - {marker(number)}
    if others := strange & {marker(each) for each in range(len(alone))}:
        record.mixed.append(f"prompt {number} came back with {others} of others")
        return
    if told.tokens == mine.tokens:
        record.same += 1
        return
    pairs = zip(told.tokens, mine.tokens, strict=False)
    parted = next(
        (at for at, (a, b) in enumerate(pairs) if a != b), min(len(told.tokens), len(mine.tokens))
    )
    gap = mine.gaps[parted] if parted < len(mine.gaps) else math.inf
    if gap < TIE:
        record.ties += 1
    else:
        record.parted.append(f"prompt {number} parts at token {parted}, gap {gap:.3f} nats")


def counted(told: Sequence[str]) -> dict[str, int]:
    """How often each was told."""
    return dict(sorted(Counter(told).items()))


def marked(alone: Sequence[Told]) -> int:
    """How many answers hold the marker of their prompt and no other."""
    return sum(told.markers() == {marker(number)} for number, told in enumerate(alone))


async def misbehave(port: int, record: Record) -> None:
    """Hang, vanish, and send too much, for as long as it lasts."""
    draw, hung = random.Random(0), []
    while True:
        record.bad_clients += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        del reader
        kind = draw.choice(("hang", "vanish", "large"))
        size = 10**8 if kind == "large" else 90
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % size
        )
        with contextlib.suppress(OSError):
            if kind == "large":
                for _ in range(1500):
                    writer.write(b"x" * 65536)
                    await writer.drain()
            elif kind == "vanish":
                writer.write(
                    b'{"prompt": "Once upon a time", "max_tokens": 400, "stream": true}'.ljust(90)
                )
                await writer.drain()
                await asyncio.sleep(draw.random())
        if kind == "hang":
            hung.append(writer)
            if len(hung) > 20:
                hung.pop(0).close()
        else:
            writer.close()
        await asyncio.sleep(1)


async def killed(
    served: Served, client: httpx.AsyncClient, prompts: Sequence[str], alone: Sequence[Told]
) -> dict[str, Any]:
    """Kill it under load, start it again, and ask once more."""
    asks = [asyncio.create_task(ask(client, each)) for each in prompts[:20]]
    await asyncio.sleep(2)
    os.kill(served.process.pid, signal.SIGKILL)
    served.process.wait()
    found = await asyncio.gather(*asks, return_exceptions=True)
    seconds = await asyncio.to_thread(served.start)
    again = await asyncio.gather(*(ask(client, each) for each in prompts[:20]))
    record = Record()
    for number, told in enumerate(again):
        judge(told, number, alone, record)
    broken = sum(isinstance(each, Exception) for each in found)
    return {
        "ready_after": seconds,
        "broken_off": broken,
        "mixed_up_after": record.mixed,
        "parted_elsewhere_after": counted(record.parted),
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    ordered = sorted(seconds)
    if not ordered:
        return {"p50": math.nan, "p95": math.nan}
    return {"p50": statistics.median(ordered), "p95": ordered[int(0.95 * (len(ordered) - 1))]}


def memory(record: Record) -> dict[str, float]:
    """Megabytes after a fifth of the time, at the end, and at most."""
    sizes = [size / 1e6 for _, size in record.memory]
    fifth = max(len(sizes) // 5, 1)
    return {
        "after_a_fifth": statistics.median(sizes[fifth : 2 * fifth] or sizes),
        "at_the_end": statistics.median(sizes[-fifth:]),
        "peak": max(sizes),
    }


if __name__ == "__main__":
    main()
