"""Continuous batching: one thread writes all answers of a model, a token of each at a time."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from attar.errors import AttarError
from attar.runtimes._sampling import pick
from attar.runtimes.runtime import Floats, Sampling, Token

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

    @property
    def reads(self) -> bool:
        """Whether it is given a piece of its prompt, other than the lone token that joins it."""
        whole = not self.written and len(self.job.prompt) == len(self.given)
        return len(self.given) > 1 or (whole and len(self.given) == 1)


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
        alone = [row for row in self._rows if row.reads]
        together = [row for row in self._rows if row.given and not row.reads]
        for row in alone:
            self._read(row)
        if together:
            logits = self._batch.extend({row.name: row.given for row in together})
            for row in together:
                self._go_on(row, logits[row.name])

    def _read(self, row: _Row) -> None:
        """A piece of a prompt, alone: one that a model fails on ends no other's answer."""
        try:
            logits = self._batch.extend({row.name: row.given})
        except Exception as error:  # whatever a model raises
            self._end(row, End("error", error))
        else:
            self._go_on(row, logits[row.name])

    def _go_on(self, row: _Row, logits: Floats) -> None:
        row.left = row.left[len(row.given) :]
        if not row.left:
            self._tell(row, logits)

    def _tell(self, row: _Row, logits: Floats) -> None:
        try:
            token = pick(logits, row.job.sampling, row.random, row.job.top)
        except AttarError as error:  # of logits that are no numbers
            self._end(row, End("error", error))
            return
        row.written += 1
        row.left = [token.id]
        row.job.tell(token)
        reason = row.job.ends(token, row.written)
        if reason is not None:
            self._end(row, End(reason))

    def _end(self, row: _Row, end: End) -> None:
        self._leave(row)
        row.job.tell(end)

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
