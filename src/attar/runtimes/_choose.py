"""Choosing the next token from logits, alike for all engines that hand them out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attar.runtimes.runtime import Floats, Sampling, Token


class Chooser:
    """Draws tokens one after another, from the seed on."""

    def __init__(self, sampling: Sampling, top: int = 0) -> None:
        self._sampling, self._top = sampling, top
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: Floats) -> Token:
        """The next token, by logits [vocabulary]."""
        logprobs = normalized(logits)
        chosen = int(logprobs.argmax()) if not self._sampling.temperature else self._drawn(logprobs)
        return Token(chosen, float(logprobs[chosen]), tuple(likeliest(logprobs, self._top)))

    def _drawn(self, logprobs: Floats) -> int:
        sampling = self._sampling
        kept = np.arange(len(logprobs))
        if sampling.top_k and sampling.top_k < len(kept):
            kept = np.argpartition(logprobs, -sampling.top_k)[-sampling.top_k :]
        kept = kept[np.argsort(-logprobs[kept], kind="stable")]
        scaled = logprobs[kept].astype(np.float64) / sampling.temperature
        shares = np.exp(scaled - scaled[0])
        shares /= shares.sum()
        if sampling.top_p is not None and sampling.top_p < 1:
            count = int(np.searchsorted(shares.cumsum(), sampling.top_p)) + 1
            shares = shares[:count] / shares[:count].sum()
        place = int(np.searchsorted(shares.cumsum(), self._random.random(), side="right"))
        return int(kept[min(place, len(shares) - 1)])


def normalized(logits: Floats) -> Floats:
    """Log-probabilities over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def likeliest(logprobs: Floats, count: int) -> Sequence[tuple[int, float]]:
    """The likeliest tokens with their log-probabilities, the likeliest first."""
    if not count:
        return []
    found = np.argpartition(logprobs, -count)[-count:]
    found = found[np.argsort(-logprobs[found], kind="stable")]
    return [(int(token), float(logprobs[token])) for token in found]
