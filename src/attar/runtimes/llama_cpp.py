"""llama.cpp through xllamacpp, which needs no compiler: one GGUF file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from attar.errors import AttarError, ModelError
from attar.runtimes._gguf import encodes, gguf_of, header_numbers, read_gguf
from attar.runtimes._llama_server import LlamaServer, checked
from attar.runtimes._places import Places, Readings
from attar.runtimes._writing import until
from attar.runtimes.runtime import (
    GREEDY,
    Decoder,
    Encoder,
    Engine,
    Floats,
    Ids,
    Sampling,
    StoredCodes,
    Token,
)

CONTEXT = 4096  # tokens that the cache has places for, where the model itself has more
KNOWN = 128  # likeliest tokens that are asked for at a position
_TEXTS, _TOKENS = 4, 8192  # that an encoder reads together, at most
_TOGETHER = 512 - 64  # tokens of prompts that are read at once: it computes 512 together
_RANKS = 4  # the pooling of files that tell how well two texts go together
_ROWS = 1 << 18  # of a vocabulary whose size a file does not tell
_FORCED = 1e4  # added to a logit, so that its token is drawn; log-probabilities are told without


class LlamaCpp(Engine):
    """One GGUF file on the CPU: a decoder, or an encoder that makes vectors of texts."""

    name = "llama-cpp"
    extra = "llama-cpp"
    modules = ("xllamacpp", "gguf")
    several = True

    def holds(self, folder: Path) -> bool:
        return gguf_of(folder) is not None

    def open(self, folder: Path, threads: int | None = None) -> Decoder | Encoder:
        return self.serve(folder, threads, 1, CONTEXT)

    def serve(
        self, folder: Path, threads: int | None, slots: int, context: int
    ) -> Decoder | Encoder:
        self.require()
        path = gguf_of(folder)
        if path is None:
            raise ModelError(f"{folder} holds no GGUF file, or several")
        if encodes(path):
            return LlamaCppEncoder(path, threads, context)
        return LlamaCppDecoder(path, threads, slots, context)

    def read_back(self, folder: Path) -> Mapping[str, StoredCodes]:
        path = gguf_of(folder)
        return {} if path is None else read_gguf(path)

    def version(self) -> str:
        return f"xllamacpp {version('xllamacpp')}"


class LlamaCppEncoder(LlamaServer, Encoder):
    """A GGUF file of an encoder: a vector for each text, pooled as the file says, or the mean."""

    pools = True

    def __init__(self, path: Path, threads: int | None = None, context: int = CONTEXT) -> None:
        told = header_numbers(path, ("context_length", "pooling_type"))
        if told.get("pooling_type") == _RANKS:
            raise ModelError(f"{path} tells how well texts go together, and makes no vectors")
        self.context = min(told.get("context_length", context), context)
        texts = max(1, min(_TEXTS, _TOKENS // self.context))
        pooling = "UNSPECIFIED" if told.get("pooling_type") else "MEAN"
        self._start(path, threads, (self.context, texts), pooling)

    def run(self, ids: Ids, mask: Ids) -> Floats:
        rows = [row[real].tolist() for row, real in zip(ids, mask.astype(bool), strict=True)]
        request = {"input": rows, "embd_normalize": -1}  # as long as they are
        answer = checked(self._server.handle_embeddings(request))
        return np.array([item["embedding"] for item in answer["data"]], np.float32)


class LlamaCppDecoder(LlamaServer, Decoder):
    """A GGUF file of a decoder."""

    known = KNOWN

    def __init__(
        self, path: Path, threads: int | None = None, slots: int = 1, context: int = CONTEXT
    ) -> None:
        numbers = header_numbers(path)
        self.context = min(numbers.get("context_length", CONTEXT), context)
        self.slots, self._rows = slots, numbers.get("vocab_size", _ROWS)
        self._places, self._readings = Places(slots), Readings(_TOGETHER)
        self._start(path, threads, (self.context, slots))

    def logprobs(self, ids: Sequence[int]) -> Floats:
        found = np.full((len(ids), self._rows), np.nan, np.float32)
        for position in range(len(ids)):
            for id_, logprob in self._likeliest(ids[: position + 1]):
                found[position, id_] = logprob
        return found

    def scores(self, ids: Sequence[int]) -> Floats:
        found = [self._forced(ids[:position], ids[position])[0] for position in range(1, len(ids))]
        return np.array(found, np.float32)

    def generate(
        self,
        prompt: Sequence[int],
        limit: int,
        sampling: Sampling = GREEDY,
        stop: Sequence[int] = (),
        top: int = 0,
    ) -> Iterator[Token]:
        writing = self._drawn if sampling.temperature > 0 else self._greedy
        return until(self._placed(list(prompt), limit, sampling, top, writing), limit, stop)

    def _placed(
        self, ids: list[int], limit: int, sampling: Sampling, top: int, writing: Callable[..., Any]
    ) -> Iterator[Token]:
        """Write in a place that no other text takes meanwhile.

        A prompt is read from its first token on unless it goes on with the one that was last read
        there, beside no others that would part it (`Readings`).
        """
        with self._places.taken(ids) as (place, goes_on):
            where = {"id_slot": place, "cache_prompt": goes_on}
            with closing(writing(ids, limit, sampling, top, where)) as written:
                with self._readings.one(None if goes_on else len(ids)):
                    first = list(islice(written, 1))
                yield from first
                yield from written

    def _greedy(
        self, ids: list[int], limit: int, sampling: Sampling, top: int, where: dict[str, Any]
    ) -> Iterator[Token]:
        """A stream, and one by one what it holds back: tokens that end within a character."""
        end = len(ids) + limit
        while len(ids) < end:
            held_back = False
            for token, count in self._stream(ids, end - len(ids), top, **where):
                where["cache_prompt"] = True
                if token is None or count > 1:
                    held_back = True
                    break
                ids.append(token.id)
                yield token
            if not held_back:
                return
            for _ in range(count):  # pyright: ignore[reportPossiblyUnbound]
                following, _ = self._next(ids, sampling, top, **where)
                ids.append(following.id)
                yield following
            if token is None:  # pyright: ignore[reportPossiblyUnbound]
                return

    def _drawn(
        self, ids: list[int], limit: int, sampling: Sampling, top: int, where: dict[str, Any]
    ) -> Iterator[Token]:
        """Each drawn by a seed of its own: a stream that was broken off could not go on."""
        for _ in range(limit):
            token, ends = self._next(ids, sampling, top, **where)
            where["cache_prompt"] = True
            ids.append(token.id)
            yield token
            if ends:
                return

    def _next(
        self, ids: list[int], sampling: Sampling, top: int, **more: Any
    ) -> tuple[Token, bool]:
        """The token that comes next, and whether the file says that it ends a text."""
        answer = self._ask(ids, top, **_drawing(sampling, len(ids)), **more)
        (id_,) = answer["__verbose"]["tokens"]
        ends = answer["choices"][0]["finish_reason"] == "stop"
        told = _told(answer)
        if told is not None:
            return told, ends
        logprob, others = self._forced(ids, id_, top, **{**more, "cache_prompt": True})
        return Token(id_, logprob, others), ends

    def _stream(
        self, ids: list[int], limit: int, top: int, **more: Any
    ) -> Iterator[tuple[Token | None, int]]:
        """Tokens as they come, each with how many were written since the last that came.

        None for those that were held back to the end.
        """
        queue: SimpleQueue[Any] = SimpleQueue()
        ended = threading.Event()

        def take(chunk: Any) -> bool:
            queue.put(chunk)
            return ended.is_set()

        def run() -> None:
            try:
                request = _request(ids, limit, top, stream=True, timings_per_token=True, **more)
                self._server.handle_completions(request, take)
            except Exception as error:
                queue.put(error)
            queue.put(None)

        worker = threading.Thread(target=run, daemon=True)
        worker.start()
        try:
            before = 0
            while (chunk := queue.get()) is not None:
                token = _told(checked(chunk))
                ends = chunk["choices"][0]["finish_reason"] is not None
                count = chunk["timings"]["predicted_n"] if token or ends else before
                if count == before:
                    continue
                yield token, count - before
                before = count
        finally:
            ended.set()
            worker.join()

    def _likeliest(self, ids: Sequence[int]) -> Sequence[tuple[int, float]]:
        """What may follow, the likeliest first.

        Of a token that ends within a character nothing is told, so another one is forced: that
        of the last id, or where it is such a token itself, of one that never is.
        """
        for carrier in (ids[-1], *self._carriers()):
            told = _told(self._ask(ids, KNOWN, logit_bias=[[carrier, _FORCED]]))
            if told is not None:
                return told.top
        raise AttarError("llama.cpp tells no log-probabilities of this file's tokens")

    def _carriers(self) -> range:
        """Ids among which some stand for whole characters: special ones and ASCII come first."""
        return range(min(self._rows, 400))

    def _forced(
        self, ids: Sequence[int], wanted: int, top: int = 0, **more: Any
    ) -> tuple[float, tuple[tuple[int, float], ...]]:
        """The log-probability of one token, and of the likeliest ones."""
        told = _told(self._ask(ids, top, logit_bias=[[wanted, _FORCED]], **more))
        if told is not None:
            return told.logprob, told.top
        for carrier in self._carriers():
            told = _told(self._ask(ids, self._rows, logit_bias=[[carrier, _FORCED]], **more))
            if told is not None:
                return dict(told.top).get(wanted, float("-inf")), told.top[:top]
        raise AttarError("llama.cpp tells no log-probabilities of this file's tokens")

    def _ask(self, ids: Sequence[int], top: int, **more: Any) -> Any:
        request = _request(ids, 1, top, return_tokens=True, verbose=True, **more)
        return checked(self._server.handle_completions(request))


def _request(ids: Sequence[int], limit: int, top: int, **more: Any) -> dict[str, Any]:
    """Without every sampler that the caller did not ask for."""
    usual = {"temperature": 0.0, "samplers": ["temperature"], "cache_prompt": True}
    return {
        "prompt": [int(id_) for id_ in ids],
        "max_tokens": limit,
        "n_probs": max(top, 1),
        **usual,
        **more,
    }


def _drawing(sampling: Sampling, position: int) -> dict[str, Any]:
    """How one token is drawn: a seed for each position."""
    if sampling.temperature <= 0:
        return {}
    seed = np.random.SeedSequence([sampling.seed, position]).generate_state(1)[0]
    return {
        "temperature": sampling.temperature,
        "samplers": ["temperature", "top_k", "top_p"],
        "top_k": sampling.top_k or 0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "seed": int(seed >> 1),
    }


def _told(answer: Any) -> Token | None:
    """The token that an answer tells of; None where it ends within a character."""
    told = (answer["choices"][0].get("logprobs") or {}).get("content")
    if not told:
        return None
    top = tuple((item["id"], item["logprob"]) for item in told[0]["top_logprobs"])
    return Token(told[0]["id"], told[0]["logprob"], top)
