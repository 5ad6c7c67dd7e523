"""Continuous batching: one thread writes all answers of a model, a token of each at a time."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from attar.errors import AttarError
from attar.runtimes.runtime import Decoder, Floats, Sampling, Token
from attar.serve.sampling import pick

PIECE = 256  # tokens of new prompts that are read between two tokens of the others


@dataclass(frozen=True)
class End:
    """No more tokens come: `stop` after a token that ends, `length` at the limit, or an error."""

    reason: str
    error: Exception | None = None


@dataclass(eq=False)
class Job:
    """A prompt, how to go on with it, and whom to tell.

    `tell` is called from the writer's thread with every token, then once with an End, and must
    return at once. `top` is how many of the likeliest tokens come with each, None where no
    log-probability is wanted at all.
    """

    prompt: Sequence[int]
    limit: int
    sampling: Sampling
    stop: frozenset[int]
    tell: Callable[[Token | End], None]
    top: int | None = None
    gone: bool = False  # nobody waits for it any more

    def ends(self, token: Token, written: int) -> str | None:
        """Why nothing comes after this token, if so."""
        if token.id in self.stop:
            return "stop"
        return "length" if written >= self.limit else None


class QueueFull(AttarError):
    """As many jobs wait as may."""


class Stopped(AttarError):
    """The model is being unloaded, or the server ends."""


class Writer(ABC):
    """What writes the answers of one model."""

    waiting = 0
    running = 0

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Take a job. Raises QueueFull."""

    def cancel(self, job: Job) -> None:
        """Stop writing for a job; its End may be told or not."""
        job.gone = True

    @abstractmethod
    def close(self) -> None:
        """End every job with Stopped, and free what the model holds."""


class Batch(Protocol):
    """Texts that grow together; `attar.models.rows.Rows` is one."""

    def extend(self, given: Mapping[int, Sequence[int]]) -> Mapping[int, Floats]:
        """Append tokens to rows; the logits of the token after, by row."""
        ...

    def drop(self, row: int) -> None:
        """Forget a row."""
        ...

    def clear(self) -> None:
        """Forget every row."""
        ...


@dataclass(eq=False)
class _Row:
    """A job under way."""

    name: int
    job: Job
    random: np.random.Generator
    left: Sequence[int]  # of the prompt, what was not read yet; then the last token alone
    written: int = 0
    given: Sequence[int] = field(default=())


class Batched(Writer):
    """Writes up to `size` answers at once; others wait, and begin as soon as one ends."""

    def __init__(
        self,
        batch: Batch,
        size: int,
        queue: int,
        start: Callable[[], None] = lambda: None,
    ) -> None:
        self._batch, self._size, self._queue, self._start = batch, size, queue, start
        self._waits: deque[Job] = deque()
        self._rows: list[_Row] = []
        self._names = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="attar-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        with self._changed:
            if self._closed:
                raise Stopped("the model is being unloaded")
            if len(self._waits) >= self._queue:
                self._waits = deque(job for job in self._waits if not job.gone)
            if len(self._waits) >= self._queue:
                raise QueueFull(f"{len(self._waits)} prompts wait already")
            self._waits.append(job)
            self.waiting = len(self._waits)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        self._start()
        while self._admit():
            try:
                self._step()
            except Exception as error:  # whatever a model raises ends its answers, not the server
                self._fail(error)
        self._fail(Stopped("the server ends"), also_waiting=True)

    def _admit(self) -> bool:
        """Wait for work and let it in; False when there is no more to do."""
        with self._changed:
            while not (self._closed or self._rows or self._waits):
                self._changed.wait()
            if self._closed:
                return False
            while self._waits and len(self._rows) < self._size:
                job = self._waits.popleft()
                if not job.gone:
                    self._names += 1
                    random = np.random.default_rng(job.sampling.seed)
                    self._rows.append(_Row(self._names, job, random, list(job.prompt)))
            self.waiting, self.running = len(self._waits), len(self._rows)
            return True

    def _step(self) -> None:
        """Read pieces of new prompts, and write one token of every other answer."""
        for row in [row for row in self._rows if row.job.gone]:
            self._leave(row)
        budget = PIECE
        for row in self._rows:
            row.given = row.left if row.written else _piece(row.left, budget)
            budget -= 0 if row.written else len(row.given)
        chosen = {row.name: row.given for row in self._rows if row.given}
        if not chosen:
            return
        logits = self._batch.extend(chosen)
        for row in [row for row in self._rows if row.given]:
            row.left = row.left[len(row.given) :]
            if not row.left:
                self._tell(row, logits[row.name])

    def _tell(self, row: _Row, logits: Floats) -> None:
        token = pick(logits, row.job.sampling, row.random, row.job.top)
        row.written += 1
        row.left = [token.id]
        row.job.tell(token)
        reason = row.job.ends(token, row.written)
        if reason is not None:
            self._leave(row)
            row.job.tell(End(reason))

    def _leave(self, row: _Row) -> None:
        self._rows.remove(row)
        self._batch.drop(row.name)
        self.running = len(self._rows)

    def _fail(self, error: Exception, also_waiting: bool = False) -> None:
        jobs = [row.job for row in self._rows]
        self._rows.clear()
        self._batch.clear()
        self.running = 0
        if also_waiting:
            jobs += self._waits
            self._waits.clear()
            self.waiting = 0
        for job in jobs:
            job.tell(End("error", error))


def _piece(left: Sequence[int], budget: int) -> Sequence[int]:
    """The next piece of a prompt; a lone token only as the last one, for it begins the writing."""
    return () if budget < 2 <= len(left) else left[:budget]


class Delegated(Writer):
    """Hands each job to a decoder that batches by itself, or takes `size` of them at a time."""

    def __init__(self, decoder: Decoder, size: int, queue: int) -> None:
        self._decoder, self._size, self._queue = decoder, size, queue
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="attar-writer")
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, job: Job) -> None:
        with self._lock:
            if self._closed:
                raise Stopped("the model is being unloaded")
            if self.waiting >= self._queue:
                raise QueueFull(f"{self.waiting} prompts wait already")
            self.waiting += 1
        self._threads.submit(self._write, job)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._threads.shutdown(wait=True)
        self._decoder.close()

    def _write(self, job: Job) -> None:
        with self._lock:
            self.waiting -= 1
            self.running += 1
        try:
            end = self._answer(job)
        except Exception as error:  # whatever an engine raises ends this answer, not the server
            end = End("error", error)
        with self._lock:
            self.running -= 1
        job.tell(end)

    def _answer(self, job: Job) -> End:
        if self._closed:
            return End("error", Stopped("the server ends"))
        if job.gone:
            return End("stop")
        tokens = self._decoder.generate(
            job.prompt, job.limit, job.sampling, tuple(job.stop), job.top or 0
        )
        with closing(tokens) as written:  # pyright: ignore[reportArgumentType]
            for count, token in enumerate(written, 1):
                if job.gone or self._closed:
                    break
                job.tell(token)
                reason = job.ends(token, count)
                if reason is not None:
                    return End(reason)
        return End("error", Stopped("the server ends")) if self._closed else End("stop")
