"""Choosing the next token by its logits: no vocabulary is sorted, and nothing computed in vain."""

from __future__ import annotations

import numpy as np

from attar.errors import AttarError
from attar.runtimes.runtime import Floats, Ids, Sampling, Token

_FEW = 256  # tokens that mostly hold the share that `top_p` asks for


def pick(logits: Floats, sampling: Sampling, random: np.random.Generator, top: int | None) -> Token:
    """Choose a token by its logits [vocabulary].

    With `top` None no log-probability is computed, and the token's is NaN; otherwise that many
    of the likeliest tokens come with it. Raises AttarError where a logit is NaN, or all are.
    """
    if not np.isfinite(logits.max()):
        raise AttarError("the model gives NaN or infinite logits")
    chosen = _draw(logits, sampling, random) if sampling.temperature > 0 else int(logits.argmax())
    if top is None:
        return Token(chosen, float("nan"))
    logprobs = log_softmax(logits)
    others = tuple((token, float(logprobs[token])) for token in likeliest(logprobs, top))
    return Token(chosen, float(logprobs[chosen]), others)


def _draw(logits: Floats, sampling: Sampling, random: np.random.Generator) -> int:
    """Draw at random: one uniform number a token, whatever is kept of the vocabulary."""
    uniform = random.random()
    weights = np.exp((logits - logits.max()) / np.float32(sampling.temperature))
    places = _kept(weights, sampling)
    sums = np.cumsum(weights if places is None else weights[places], dtype=np.float64)
    place = min(int(np.searchsorted(sums, uniform * sums[-1], "right")), len(sums) - 1)
    return place if places is None else int(places[place])


def _kept(weights: Floats, sampling: Sampling) -> Ids | None:
    """Where the likeliest are that `top_k` and `top_p` leave; None where both leave all."""
    if not sampling.top_k and sampling.top_p is None:
        return None
    count = min(sampling.top_k or _FEW, len(weights))
    while True:
        places = np.array(likeliest(weights, count))
        if sampling.top_p is None:
            return places
        sums = np.cumsum(weights[places], dtype=np.float64)
        total = sums[-1] if sampling.top_k else float(weights.sum(dtype=np.float64))
        needed = int(np.searchsorted(sums, sampling.top_p * total)) + 1
        if needed <= count or sampling.top_k or count == len(weights):
            return places[:needed]
        count = min(4 * count, len(weights))


def log_softmax(logits: Floats) -> Floats:
    """Natural log-probabilities over the last axis, in float32."""
    shifted = logits.astype(np.float32) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def likeliest(logprobs: Floats, count: int) -> list[int]:
    """The ids of the likeliest tokens, the likeliest first."""
    if count < 1:
        return []
    count = min(count, len(logprobs))
    found = np.argpartition(-logprobs, count - 1)[:count]
    return found[np.argsort(-logprobs[found], kind="stable")].tolist()
