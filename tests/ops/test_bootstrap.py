from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from attar.ops.bootstrap import Sums, interval, macro_f1, paired

SEQUENCES = 40


def _sample(seed: int = 0, sequences: int = SEQUENCES) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 60, sequences)
    return tokens * random.normal(3.0, 0.5, sequences), tokens


def test_is_the_percentile_bootstrap_of_the_ratio_of_sums() -> None:
    nll, tokens = _sample()
    random = np.random.default_rng(7)
    draws = random.integers(SEQUENCES, size=(2000, SEQUENCES), dtype=np.int32)
    brute = [sum(nll[i] for i in row) / sum(tokens[i] for i in row) for row in draws]
    found = interval(nll, tokens, seed=7)
    assert found.value == pytest.approx(nll.sum() / tokens.sum())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(brute, [2.5, 97.5])))


def test_the_draws_do_not_depend_on_how_many_are_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nll, tokens = _sample()
    whole = interval(nll, tokens, seed=1)
    monkeypatch.setattr("attar.ops.bootstrap._AT_ONCE", 100)
    assert interval(nll, tokens, seed=1) == whole


def test_same_seed_same_interval_and_another_seed_another() -> None:
    nll, tokens = _sample()
    assert interval(nll, tokens, seed=1) == interval(nll, tokens, seed=1)
    assert interval(nll, tokens, seed=1) != interval(nll, tokens, seed=2)


def test_covers_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(300):
        nll, tokens = _sample(seed, sequences=60)
        found = interval(nll, tokens, seed=seed, resamples=500)
        hits += found.low <= 3.0 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


def test_pairing_takes_out_what_makes_a_text_hard_for_both() -> None:
    nll, tokens = _sample()
    worse = nll + 0.1 * tokens
    found = paired(Sums(worse, tokens), Sums(nll, tokens), seed=0)
    assert found.value == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
    alone = interval(worse, tokens, seed=0)
    assert alone.high - alone.low > 0.1


def test_paired_is_the_brute_force_difference() -> None:
    nll, tokens = _sample()
    other = nll * np.random.default_rng(3).uniform(0.9, 1.3, SEQUENCES)
    found = paired(Sums(other, tokens), Sums(nll, tokens), seed=5, resamples=300)
    draws = np.random.default_rng(5).integers(SEQUENCES, size=(300, SEQUENCES), dtype=np.int32)
    brute = [(other[row].sum() - nll[row].sum()) / tokens[row].sum() for row in draws]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(brute, [2.5, 97.5])))


def test_paired_coverage() -> None:
    hits = 0
    for seed in range(300):
        nll, tokens = _sample(seed, sequences=60)
        own = nll + tokens * np.random.default_rng(seed + 1000).normal(0.2, 0.3, 60)
        found = paired(Sums(own, tokens), Sums(nll, tokens), seed=seed, resamples=500)
        hits += found.low <= 0.2 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


def test_macro_f1_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(0, 4, 200)
    predictions = np.where(random.random(200) < 0.7, targets, random.integers(0, 5, 200))
    found = macro_f1(predictions, targets, seed=0)
    assert found.value == pytest.approx(f1_score(targets, predictions, average="macro"))
    rows = [random.integers(200, size=200) for _ in range(2000)]
    brute = [
        f1_score(targets[row], predictions[row], average="macro", zero_division=0)
        for row in rows[:400]
    ]
    low, high = np.percentile(brute, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.015)


def test_macro_f1_leaves_out_a_class_that_a_draw_misses() -> None:
    found = macro_f1([0] * 30 + [1], [0] * 30 + [1], seed=0)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_macro_f1_of_all_wrong_is_nothing() -> None:
    found = macro_f1([0, 0, 0], [1, 1, 1], seed=0)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_one_sequence_has_an_interval_without_width() -> None:
    found = interval([6.0], [3], seed=0)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_sequences_without_tokens_are_nothing_to_divide_by() -> None:
    found = interval([0.0, 3.0], [0, 1], seed=0)
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)
    assert np.isnan(interval([0.0], [0], seed=0).value)
    assert np.isnan(interval([], [], seed=0).value)
    assert np.isnan(macro_f1([], [], seed=0).value)


def test_nan_makes_nan_and_infinity_stays() -> None:
    assert np.isnan(interval([1.0, np.nan], [1, 1], seed=0).value)
    assert interval([1.0, np.inf], [1, 1], seed=0).value == np.inf


def test_what_does_not_pair_up_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired(Sums([1.0], [1]), Sums([1.0, 2.0], [1, 1]), seed=0)
    with pytest.raises(ValueError, match="pair up"):
        interval([1.0], [1, 2], seed=0)
    with pytest.raises(ValueError, match="pair up"):
        macro_f1([1], [1, 2], seed=0)
