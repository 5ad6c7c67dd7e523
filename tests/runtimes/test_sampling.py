"""Tokens are drawn from the distribution that temperature, top_k and top_p leave."""

from __future__ import annotations

import numpy as np
import pytest

from attar.runtimes._sampling import pick
from attar.runtimes.runtime import Sampling
from attar.serve.writing import sampling as asked

DRAWS = 4_000


def expected(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution in float64, by sorting all of it."""
    scaled = logits.astype(np.float64) / sampling.temperature
    shares = np.exp(scaled - scaled.max())
    order = np.argsort(-shares)
    if sampling.top_k:
        shares[order[sampling.top_k :]] = 0
    shares /= shares.sum()
    if sampling.top_p:
        before = np.cumsum(shares[order]) - shares[order]
        shares[order[before >= sampling.top_p]] = 0
    return shares / shares.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.5),
        Sampling(1.0, top_k=0),
        Sampling(1.0, top_k=3),
        Sampling(1.0, top_p=0.7),
        Sampling(1.5, top_k=20, top_p=0.9),
        Sampling(2.0, top_p=0.999),
    ],
)
def test_draws_are_as_often_as_they_should_be(sampling: Sampling):
    logits = np.random.default_rng(0).normal(0, 2, 30).astype(np.float32)
    random = np.random.default_rng(1)
    drawn = [pick(logits, sampling, random, None).id for _ in range(DRAWS)]
    counts = np.bincount(drawn, minlength=30)
    wanted = expected(logits, sampling)
    assert not counts[wanted == 0].any()
    likely = wanted * DRAWS > 5
    chi = ((counts - wanted * DRAWS) ** 2 / (wanted * DRAWS + 1e-9))[likely].sum()
    assert chi < likely.sum() + 4 * np.sqrt(2 * likely.sum())


def test_many_words_need_more_than_a_few():
    """A flat distribution over 2,000 words: half of it is 1,000 of them."""
    logits = -np.arange(2000, dtype=np.float32) * 1e-6
    random = np.random.default_rng(0)
    drawn = {pick(logits, Sampling(1.0, top_p=0.5), random, None).id for _ in range(2000)}
    assert max(drawn) < 1001
    assert len(drawn) > 800


def test_the_same_seed_draws_the_same():
    logits = np.random.default_rng(0).normal(0, 1, 100).astype(np.float32)
    draws = [
        [pick(logits, Sampling(1.0, top_p=0.9), np.random.default_rng(seed), None).id for _ in "ab"]
        for seed in (1, 1, 2, 3, 4)
    ]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) > 1


def test_log_probabilities_are_the_models_own():
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    token = pick(logits, Sampling(0.0), np.random.default_rng(0), 2)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    assert token.id == 1
    assert token.logprob == pytest.approx(exact[1], abs=1e-6)
    assert [token for token, _ in token.top] == [1, 2]
    assert [value for _, value in token.top] == pytest.approx(exact[[1, 2]], abs=1e-6)
    assert np.isnan(pick(logits, Sampling(0.0), np.random.default_rng(0), None).logprob)


@pytest.mark.parametrize("temperature", [0.0, 1e-310, 1e-50, 1e-6])
def test_the_coldest_temperatures_take_the_likeliest(temperature: float):
    logits = np.array([1.0, 3.0, 2.0, 0.0], np.float32)
    drawn = asked(temperature, 1.0, None, 0)
    assert pick(logits, drawn, np.random.default_rng(0), None).id == 1
