"""Random numbers by key and place: the published ones, and that they are even and independent."""

from __future__ import annotations

import numpy as np
import pytest

from attar.data.splitmix import below, bits, uniform

ZERO, KEYS, COUNT = np.uint64(0), 2000, 60


def test_the_numbers_are_the_published_ones() -> None:
    assert [hex(number) for number in bits(ZERO, np.arange(3))] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_a_number_depends_on_its_key_and_place_alone() -> None:
    keys = bits(np.uint64(7), np.arange(5))
    every = bits(keys[:, None], np.arange(9))
    assert every.shape == (5, 9)
    assert len(np.unique(every)) == 45
    assert np.array_equal(bits(keys[3:4], np.array([6])), every[3, 6:7])


def test_numbers_are_even() -> None:
    draws = uniform(bits(ZERO, np.arange(KEYS))[:, None], np.arange(COUNT))
    assert 0 <= draws.min() < draws.max() < 1
    for numbers in (draws, draws[:, 0]):  # all, and the first of each key
        counts = np.bincount(below(50, numbers).ravel(), minlength=50)
        even = numbers.size / 50
        assert ((counts - even) ** 2 / even).sum() < 85.4  # passed once in a thousand times


def test_neighbours_are_not_alike() -> None:
    """Rows of places side by side, whole and shifted by a number, and numbers of one row."""
    draws = uniform(bits(np.uint64(1), np.arange(KEYS))[:, None], np.arange(COUNT))
    for one, other in (
        (draws[:-1], draws[1:]),
        (draws[:-1, 1:], draws[1:, :-1]),
        (draws[:, :-1], draws[:, 1:]),
    ):
        found = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(found) < 4 / np.sqrt(one.size)


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 2**31])
def test_below_stays_below(count: int) -> None:
    edges = np.array([0.0, 0.5, 1 - 2.0**-53])
    assert below(count, edges).tolist() == [0, count // 2, count - 1]
