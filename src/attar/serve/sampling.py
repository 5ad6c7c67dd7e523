"""The next token from its logits."""

from __future__ import annotations

import numpy as np

from attar.runtimes.runtime import Floats, Sampling, Token


def pick(logits: Floats, sampling: Sampling, random: np.random.Generator, top: int | None) -> Token:
    """Choose a token by its logits [vocabulary].

    With `top` None no log-probability is computed, and the token's is NaN; otherwise that many
    of the likeliest tokens come with it.
    """
    if sampling.temperature == 0.0:
        chosen = int(logits.argmax())
    else:
        chosen = _draw(logits, sampling, random)
    if top is None:
        return Token(chosen, float("nan"))
    logprobs = logits - _logsumexp(logits)
    likeliest = largest(logits, top)
    return Token(
        chosen,
        float(logprobs[chosen]),
        tuple((int(token), float(logprobs[token])) for token in likeliest),
    )


def largest(values: Floats, count: int) -> np.ndarray:
    """Where the largest values are, the largest first; the lower place where two are equal."""
    count = min(count, len(values))
    if count == 0:
        return np.empty(0, np.int64)
    least = np.partition(values, len(values) - count)[len(values) - count]
    places = np.flatnonzero(values >= least)
    return places[np.argsort(-values[places], kind="stable")][:count]


def _draw(logits: Floats, sampling: Sampling, random: np.random.Generator) -> int:
    """Draw at random: a uniform number among the probabilities, the likeliest first."""
    uniform = random.random()
    places = largest(logits, sampling.top_k or len(logits))
    scaled = (logits[places].astype(np.float64) - float(logits.max())) / sampling.temperature
    weights = np.exp(scaled)
    sums = np.cumsum(weights)
    if sampling.top_p is not None:
        # The fewest of the likeliest that hold this share together, and at least one.
        kept = int(np.searchsorted(sums, sampling.top_p * sums[-1])) + 1
        sums = sums[:kept]
    return int(places[min(int(np.searchsorted(sums, uniform * sums[-1], "right")), len(sums) - 1)])


def _logsumexp(logits: Floats) -> float:
    highest = float(logits.max())
    return highest + float(np.log(np.exp(logits - highest, dtype=np.float64).sum()))
