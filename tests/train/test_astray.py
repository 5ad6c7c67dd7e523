"""When a loss that is still a number says that training is lost."""

from __future__ import annotations

from attar.train.astray import Course, follow, lost, worse


def course(*values: float, **others: float) -> Course:
    """A loss that goes like this, and others that stay."""
    found: Course = {}
    for value in values:
        follow(found, {"task": value, **others})
    return found


def test_a_language_model_that_knows_nothing_any_more_is_lost():
    told = lost(course(3.4, 3.5, 3.3, 3.2, *[12.0] * 30))
    assert told is not None
    assert told.startswith("task from 3.4 to 11.6")


def test_one_odd_batch_is_not():
    assert lost(course(3.4, 3.5, 3.3, 3.2, 30.0, 3.2)) is None


def test_a_small_loss_may_rise_many_times():
    assert lost(course(0.02, 0.02, 0.02, *[0.9] * 50)) is None


def test_a_large_one_may_not_triple():
    assert lost(course(100.0, 100.0, 100.0, *[290.0] * 50)) is None
    assert lost(course(100.0, 100.0, 100.0, *[310.0] * 50)) is not None


def test_all_parts_must_be_lost():
    assert lost(course(3.4, 3.5, 3.3, *[40.0] * 30, states=1.0)) is None


def test_nothing_is_lost_before_it_began():
    assert lost({}) is None
    assert lost(course(1.0, 50.0)) is None


def test_what_ended_worse_is_told_by_its_parts():
    rising = [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 4.0), (4.0, 4.0), (5.0, 4.0)]
    falling = [(x, 5 - y) for x, y in rising]
    assert worse({"loss/train": rising, "loss/task": rising}) == "task from 1 to 4"
    assert worse({"loss/train": rising}) == "train from 1 to 4"
    assert worse({"loss/train": rising, "loss/a": rising, "loss/b": falling}) is None
    assert worse({}) is None
