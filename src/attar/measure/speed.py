"""Speed and memory of a model, taken in a fresh process so that nothing lingers of this one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from attar.core.recipe import ModelSource
from attar.core.report import Figure
from attar.core.step import Task
from attar.errors import AttarError, OutOfMemory
from attar.measure.probe import Request

LIMIT = 600.0  # seconds for a probe; a small model takes about 15
ADVICE = "Set measures.speed to false to leave it out"
# Where this process found Attar, the other one does: it may be on no path but ours.
_START = "import sys; sys.path.append(sys.argv.pop()); from attar.measure.{} import main; main()"


def probe(
    path: Path | str | ModelSource,
    task: Task,
    threads: int | None = None,
    precision: str = "float32",
    device: str = "cpu",
) -> dict[str, Figure]:
    """Time a model and read its peak of memory in a fresh process.

    `tokens_per_second` of decoders or `texts_per_second` of the others, `latency_p50`,
    `latency_p95`, `peak_memory`; the notes say what was run. Raises AttarError with what the
    other process said, OutOfMemory where the system killed it.
    """
    source = path if isinstance(path, ModelSource) else ModelSource(path=str(path))
    request = Request(source, task, threads, precision, device)
    return in_fresh_process("probe", request.to_json(), source.path)


def in_fresh_process(
    module: str, request: str, path: str, advice: str = ADVICE
) -> dict[str, Figure]:
    """What the `main` of a module of `attar.measure` finds out, in a process of its own."""
    folder = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", _START.format(module), request, folder]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise AttarError(
            f"timing {path} took more than {LIMIT:.0f} s and was stopped. {advice}"
        ) from None
    answer = _answer(run, path, advice)
    return {name: Figure.model_validate(plain) for name, plain in answer.items()}


def _answer(
    run: subprocess.CompletedProcess[str], path: str, advice: str = ADVICE
) -> dict[str, Any]:
    """The JSON on the last line; anything else becomes an error that can be read."""
    if run.returncode == -signal.SIGKILL:
        raise OutOfMemory(
            f"the process that timed {path} was killed, most likely because memory ran out. "
            f"Close other programs. {advice}"
        )
    try:
        answer = json.loads(run.stdout.strip().rpartition("\n")[2])
    except ValueError:
        said = run.stderr.strip().rpartition("\n")[2] or f"exit code {run.returncode}"
        answer = {"error": said}
    if "error" in answer:
        raise AttarError(f"timing {path} in a fresh process failed: {answer['error']}. {advice}")
    return answer
