from __future__ import annotations

import math

import pytest
from sklearn.metrics import f1_score

from attar.measure.items import Items
from attar.measure.statistics import Comparison, compare, figures


def _text(nats: list[float], tokens: int = 10, **more: object) -> Items:
    return Items("causal-lm", [n * tokens for n in nats], [tokens] * len(nats), **more)


def _classes(predictions: list[int], targets: list[int]) -> Items:
    tokens = [int(target >= 0) for target in targets]
    nll = [0.5 * count for count in tokens]
    return Items("classification", nll, tokens, predictions=predictions, targets=targets)


def test_figures_of_a_language_model() -> None:
    found = figures(_text([1.0, 2.0, 3.0], kl=[1.0, 2.0, 3.0], agreed=[5, 5, 5]), None, "causal-lm")
    assert set(found) == {"perplexity", "kl", "agreement"}
    perplexity = found["perplexity"]
    assert perplexity.value == pytest.approx(math.exp(2.0))
    assert perplexity.low is not None
    assert perplexity.high is not None
    assert math.exp(1.0) <= perplexity.low < perplexity.value < perplexity.high <= math.exp(3.0)
    assert perplexity.note == "30 tokens of 3 sequences"
    assert (found["kl"].value, found["kl"].unit) == (pytest.approx(0.2), "nats/token")
    assert (found["agreement"].value, found["agreement"].unit) == (pytest.approx(50.0), "%")


def test_a_masked_model_says_that_its_perplexity_is_none() -> None:
    items = _text([1.0, 2.0])
    items.task = "masked-lm"
    assert "pseudo-perplexity" in figures(items, None, "masked-lm")["perplexity"].note


def test_figures_of_a_classifier() -> None:
    items = _classes([0, 1, 1, 2, 0], [0, 1, 2, 2, -100])
    items.kl, items.agreed = [0.1] * 5, [1, 1, 0, 1, 1]
    found = figures(items, None, "classification")
    assert found["accuracy"].value == pytest.approx(75.0)
    wanted = 100 * f1_score([0, 1, 2, 2], [0, 1, 1, 2], average="macro")
    assert found["macro_f1"].value == pytest.approx(wanted)
    assert (found["kl"].value, found["kl"].unit) == (pytest.approx(0.1), "nats/text")
    assert found["agreement"].value == pytest.approx(80.0)


def test_without_labels_only_the_reference_speaks() -> None:
    items = _classes([0, 1], [-100, -100])
    items.kl, items.agreed = [0.1, 0.2], [1, 1]
    assert set(figures(items, None, "classification")) == {"kl", "agreement"}
    assert compare(items, items).accuracy_drop is None


def test_other_tokens_are_said_not_to_compare() -> None:
    own, other = _text([1.0, 2.0]), _text([1.0, 2.0], tokens=7)
    assert "do not compare" in figures(own, other, "causal-lm")["perplexity"].note
    assert compare(own, other) == Comparison()


def test_perplexity_ratio_is_paired() -> None:
    base = [1.0, 2.0, 3.0, 2.5]
    found = compare(_text([n + math.log(1.5) for n in base]), _text(base)).perplexity_ratio
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_accuracy_drop_is_in_points() -> None:
    right = _classes([0, 1] * 20, [0, 1] * 20)
    worse = _classes([0, 1] * 16 + [1, 0] * 4, [0, 1] * 20)
    found = compare(worse, right).accuracy_drop
    assert found is not None
    assert found.value == pytest.approx(20.0)
    assert 5.0 < found.low < 20.0 < found.high < 35.0


def test_other_texts_do_not_compare() -> None:
    with pytest.raises(ValueError, match="paired"):
        compare(_text([1.0]), _text([1.0, 2.0]))
    with pytest.raises(ValueError, match="labels"):
        compare(_classes([0], [0]), _classes([0], [1]))


def test_a_hopeless_model_has_an_infinite_perplexity() -> None:
    assert figures(_text([800.0, 900.0]), None, "causal-lm")["perplexity"].value == math.inf
