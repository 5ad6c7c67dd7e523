"""Writing token by token, for engines that give logits and leave the rest to their caller."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from attar.runtimes._sampling import log_softmax, pick
from attar.runtimes.runtime import GREEDY, Decoder, Floats, Sampling, Token

Following = Callable[[Sequence[int]], Floats]
_CHUNK = 512  # tokens of a text that are computed at once
_PIECE = 256  # of a prompt


class LogitsDecoder(Decoder):
    """A language model of an engine that gives logits."""

    @abstractmethod
    def begin(self, length: int) -> Following:
        """Begin a text of up to so many tokens.

        Called with the tokens that come next, what is returned gives the logits after the last
        of them, [vocabulary].
        """

    def generate(
        self,
        prompt: Sequence[int],
        limit: int,
        sampling: Sampling = GREEDY,
        stop: Sequence[int] = (),
        top: int = 0,
    ) -> Iterator[Token]:
        length = min(len(prompt) + limit, self.context)
        written = _written(self.begin(length), prompt, sampling, top)
        return until(written, length - len(prompt), stop)


class OneText(LogitsDecoder):
    """A language model whose engine keeps the keys and values of one text at a time."""

    chunk = 128  # tokens that are computed at once

    def __init__(self, context: int) -> None:
        self.context = context
        self._text: object = None  # whose keys and values are there

    @abstractmethod
    def run(self, ids: Sequence[int], start: int) -> Floats:
        """Logits after each of these tokens, the first of them at place `start` of its text."""

    def logprobs(self, ids: Sequence[int]) -> Floats:
        self._text = None
        return np.concatenate([log_softmax(part) for part in self._parts(ids, 0)])

    def begin(self, length: int) -> Following:
        text, written = object(), list[int]()

        def following(ids: Sequence[int]) -> Floats:
            start = len(written)
            written.extend(ids)
            if self._text is not text:  # another was computed since
                self._text, start = text, 0
            return list(self._parts(written[start:], start))[-1][-1]

        return following

    def _parts(self, ids: Sequence[int], start: int) -> Iterator[Floats]:
        for first in range(0, len(ids), self.chunk):
            yield self.run(ids[first : first + self.chunk], start + first)


def _written(
    following: Following, prompt: Sequence[int], sampling: Sampling, top: int
) -> Iterator[Token]:
    given, random = prompt, np.random.default_rng(sampling.seed)
    while True:
        while len(given) > _PIECE:  # an engine computes the logits of all that it is given at once
            following(given[:_PIECE])
            given = given[_PIECE:]
        token = pick(following(given), sampling, random, top)
        yield token
        given = [token.id]


def until(tokens: Iterator[Token], limit: int, stop: Sequence[int]) -> Iterator[Token]:
    """At most `limit` tokens, and none after one of `stop`; below 1 none is asked for."""
    if limit < 1:
        return
    ends = set(stop)
    for count, token in enumerate(tokens, 1):
        yield token
        if token.id in ends or count == limit:
            return


def logprobs_of(run: Callable[[Sequence[int]], Floats], ids: Sequence[int]) -> Floats:
    """Log-probabilities after every token; `run` gives the logits after each of those that come."""
    chunks = [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]
    return np.concatenate([log_softmax(run(chunk)) for chunk in chunks])
