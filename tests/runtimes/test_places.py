"""Places for texts: who gets which, and when a prompt goes on with what was read there."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from attar.runtimes._places import Places, Readings


def test_a_prompt_goes_on_in_the_place_of_the_longest_that_it_begins_with() -> None:
    places = Places(3)
    with ExitStack() as stack:
        first = stack.enter_context(places.taken([1, 2]))
        second = stack.enter_context(places.taken([1, 2, 3]))
    assert first[0] != second[0]
    assert not first[1]
    assert not second[1]
    with places.taken([1, 2, 3, 4]) as found:
        assert found == (second[0], True)
        with places.taken([1, 2, 3, 4, 5]) as another:  # that one is being written in
            assert another == (first[0], True)
    for prompt in ([1, 2, 3, 4], [1, 2], [2, 1, 3]):  # the same, shorter, or others
        with places.taken(prompt) as found:
            assert not found[1]


def test_the_longest_unused_is_taken_and_none_twice() -> None:
    places = Places(2)
    with places.taken([1]) as one, places.taken([2]) as two:
        assert {one[0], two[0]} == {0, 1}
        with places.taken([3]) as none:
            assert none == (-1, False)
    with places.taken([4]) as found:
        assert found[0] == two[0]  # left first


def test_what_failed_or_is_overwritten_is_not_gone_on_with() -> None:
    places = Places(1)
    with pytest.raises(ValueError, match="engine"), places.taken([1]):
        raise ValueError("engine")
    with places.taken([1, 2]) as found:
        assert not found[1]
    with places.taken([7]) as found:
        assert not found[1]
    with places.taken([1, 2, 3]) as found:
        assert not found[1]


def test_a_text_that_its_reader_left_is_gone_on_with() -> None:
    places = Places(1)

    def written() -> object:
        with places.taken([1, 2]):
            yield 5
            yield 6

    text = written()
    next(text)  # pyright: ignore[reportArgumentType, reportCallIssue]
    text.close()  # pyright: ignore[reportAttributeAccessIssue]
    with places.taken([1, 2, 5, 9]) as found:
        assert found == (0, True)


def test_prompts_are_read_together_unless_one_would_part_another_at_a_token() -> None:
    readings = Readings(100)
    with readings.one(500):  # alone it may be of any length
        assert not readings.fits(3)
    with readings.one(40), readings.one(40):
        assert [readings.fits(length) for length in (18, 20, 21)] == [True, True, False]
        assert not readings.fits(None)
    with readings.one(20), readings.one(30):
        together = [length for length in range(10, 40) if readings.fits(length)]
        assert together == [each for each in range(10, 40) if each not in (19, 21, 29, 31)]
    with readings.one(None):
        assert not readings.fits(5)
    assert readings.fits(None)


def test_what_has_to_wait_is_read_once_the_other_is() -> None:
    readings, done = Readings(100), threading.Event()

    def later() -> None:
        with readings.one(21):
            done.set()

    with readings.one(20):
        thread = threading.Thread(target=later)
        thread.start()
        assert not done.wait(0.05)
    assert done.wait(10)
    thread.join()


def test_none_that_comes_later_is_read_before_one_that_has_to_wait() -> None:
    readings, order = Readings(100), list[str]()

    def read(name: str, length: int | None) -> threading.Thread:
        def reading() -> None:
            with readings.one(length):
                order.append(name)

        thread = threading.Thread(target=reading)
        thread.start()
        thread.join(0.05)
        return thread

    with readings.one(20):
        first = read("goes on with a chat", None)
        second = read("would fit", 40)
        assert order == []
    first.join(10)
    second.join(10)
    assert order == ["goes on with a chat", "would fit"]
