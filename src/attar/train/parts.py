"""Long work on many items, part by part: what is finished outlives a kill."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
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
    starts = range(0, len(items), size)
    with ctx.progress.bar(label, len(items)) as bar, _lines(ctx, label) as (done, keep):
        if done:
            bar.advance(min(len(done) * size, len(items)))
        for number, start in list(enumerate(starts))[len(done) :]:
            part = items[start : start + size]
            keep(work(part, seed_of(ctx.seed, label, number)))
            bar.advance(len(part))
    return [each for part in done for each in part]


def one_by_one(
    items: Sequence[T],
    work: Callable[[T, int], Any],
    at_once: int,
    ctx: Context,
    label: str,
) -> list[Any]:
    """What `work` makes of each item, so many at once; each is kept as soon as it is there.

    As `in_parts`, for work that waits for others and may be done in any order: it is run in
    threads. What is None is not kept, and a step that goes on tries it again. Where one fails,
    those under way are kept and the others left, and what it raised is raised.
    """
    with ctx.progress.bar(label, len(items)) as bar, _lines(ctx, label) as (lines, keep):
        done: dict[int, Any] = dict(lines)
        if done:
            bar.advance(len(done))
        lock = Lock()

        def one(number: int) -> None:
            made = work(items[number], seed_of(ctx.seed, label, number))
            with lock:
                if made is not None:
                    done[number] = keep([number, made])[1]
                bar.advance(1)

        with ThreadPoolExecutor(at_once) as pool:
            try:
                left = [number for number in range(len(items)) if number not in done]
                for future in as_completed([pool.submit(one, number) for number in left]):
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [done.get(number) for number in range(len(items))]


@contextmanager
def _lines(ctx: Context, label: str) -> Iterator[tuple[list[Any], Callable[[Any], Any]]]:
    """What is kept under a label, and a function that keeps more, and gives it as it is read."""
    name = re.sub(r"\W+", "-", label)  # a dataset may be called by anything
    path = None if ctx.scratch is None else ctx.scratch / f"{name}.jsonl"
    done = [] if path is None else _finished(path)
    file = None if path is None else path.open("a", encoding="utf-8")

    def keep(made: Any) -> Any:
        # Through JSON, so that a fresh run and one that goes on hold the same values.
        line = json.dumps(made, ensure_ascii=True)
        done.append(json.loads(line))
        if file is not None:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        return done[-1]

    try:
        yield done, keep
    finally:
        if file is not None:
            file.close()


def _finished(path: Path) -> list[Any]:
    """The parts that were written whole; what follows them is cut off."""
    if not path.exists():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]
