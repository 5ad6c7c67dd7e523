"""Engines that batch by themselves: each answer is asked for in a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

from attar.runtimes.runtime import Decoder
from attar.serve.batching import End, Job, QueueFull, Stopped, Writer


class Delegated(Writer):
    """Hands each job to a decoder that batches by itself, or takes `size` of them at a time."""

    def __init__(self, decoder: Decoder, size: int, queue: int) -> None:
        self._decoder, self._size, self._queue = decoder, size, queue
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="attar-writer")
        self._waits: deque[Job] = deque()
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, job: Job) -> None:
        with self._lock:
            if self._closed:
                raise Stopped("the model is being unloaded")
            if len(self._waits) >= self._queue:
                raise QueueFull(f"{len(self._waits)} prompts wait already")
            self._waits.append(job)
            self.waiting = len(self._waits)
            self._threads.submit(self._write)

    def cancel(self, job: Job) -> None:
        super().cancel(job)
        with self._lock, suppress(ValueError):  # what waits no more is stopped at its next token
            self._waits.remove(job)
            self.waiting = len(self._waits)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._threads.shutdown(wait=True)
        self._decoder.close()

    def _write(self) -> None:
        """Answer what waits longest; nothing where that was canceled."""
        with self._lock:
            if not self._waits:
                return
            job = self._waits.popleft()
            self.waiting = len(self._waits)
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
