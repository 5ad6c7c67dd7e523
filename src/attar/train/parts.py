"""Long work on many items, part by part: what is finished outlives a kill."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from attar.core.context import Context
from attar.core.keys import seed_of

T = TypeVar("T")


def in_parts(
    items: Sequence[T],
    size: int,
    work: Callable[[Sequence[T], int], list[Any]],
    ctx: Context,
    label: str,
) -> list[Any]:
    """What `work` makes of each run of `size` items, all in one list.

    `work` is given the items and a seed of their own, may depend on nothing else that changes,
    and returns plain data. Finished parts are kept in the step's scratch folder under the label,
    so a step that was killed goes on after the last of them, and ends with the same list.
    """
    name = re.sub(r"\W+", "-", label)  # a dataset may be called by anything
    path = None if ctx.scratch is None else ctx.scratch / f"{name}.jsonl"
    done = [] if path is None else _finished(path)
    starts = range(0, len(items), size)
    with (
        ctx.progress.bar(label, len(items)) as bar,
        nullcontext() if path is None else path.open("a", encoding="utf-8") as file,
    ):
        if done:
            bar.advance(min(len(done) * size, len(items)))
        for number, start in list(enumerate(starts))[len(done) :]:
            part = items[start : start + size]
            # Through JSON, so that a fresh run and one that goes on hold the same values.
            line = json.dumps(work(part, seed_of(ctx.seed, label, number)), ensure_ascii=True)
            done.append(json.loads(line))
            if file is not None:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
            bar.advance(len(part))
    return [each for part in done for each in part]


def _finished(path: Path) -> list[Any]:
    """The parts that were written whole; what follows them is cut off."""
    if not path.exists():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]
