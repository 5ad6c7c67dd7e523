"""Speed and memory of an exported model in the engine that runs it, in a fresh process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attar.core.report import Figure
from attar.measure.engine_probe import EngineRequest
from attar.measure.speed import in_fresh_process

AGAIN = "Time it again when less runs beside it"


def time_engine(
    folder: Path,
    engine: str,
    ids: Sequence[Sequence[int]],
    threads: int | None = None,
    tokens: int = 64,
    advice: str = AGAIN,
) -> dict[str, Figure]:
    """Time an engine on a model's folder.

    `ids` are the rows that it is given. A decoder is prompted with the first and writes `tokens`
    more: `tokens_per_second`, `first_token`, and `latency_p50` and `latency_p95` of a token. An
    encoder reads all of them at once for `texts_per_second` and the first alone for the
    latencies. `peak_memory` is that of a process that does nothing else. Of a decoder that ends
    its answers at once no speed is told. Raises AttarError with what the other process said, and
    with this advice.
    """
    request = EngineRequest(str(folder), engine, [list(row) for row in ids], threads, tokens)
    return in_fresh_process("engine_probe", request.to_json(), engine, advice)
