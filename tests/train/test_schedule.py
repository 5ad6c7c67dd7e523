"""The learning rate and the number of steps."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from attar.techniques.adapt.full import Full
from attar.train.schedule import Training, rate_at, steps_of


def test_how_long() -> None:
    assert steps_of(Training(), 7) == 7
    assert steps_of(Training(epochs=2.5), 7) == 18
    assert steps_of(Training(epochs=2, accumulate=4), 7) == 4
    assert steps_of(Training(epochs=2, accumulate=2), 7, world=2) == 4
    assert steps_of(Training(steps=3), 7, world=2) == 3
    assert steps_of(Training(tokens=10_000, batch=4, length=100), 7) == 25
    assert steps_of(Training(tokens=10, batch=4, length=100), 7) == 1


def test_two_lengths_are_refused() -> None:
    with pytest.raises(ValidationError, match="steps and tokens both say how long"):
        Full(steps=3, tokens=100)


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_rate_rises_then_falls(decay: str) -> None:
    schedule = Training.model_validate({"learning_rate": 1.0, "warmup": 0.1, "decay": decay})
    rates = [rate_at(schedule, step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert 0 < rates[0] < 0.2
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == 1.0 if decay == "constant" else 0 < rates[-1] < 0.02


def test_one_step_moves() -> None:
    assert rate_at(Training(learning_rate=1.0), 0, 1) == 1.0
    assert rate_at(Training(learning_rate=1.0, warmup=0.9), 0, 1) > 0


def test_how_often_to_checkpoint_is_in_no_key() -> None:
    assert Full().keyed_settings() == Full(checkpoint_minutes=0).keyed_settings()
