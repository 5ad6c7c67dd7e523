"""Which places are chosen from what is drawn for them, and what becomes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attar.data.masking import IGNORED, Draws, Masker

ANY = 9  # what was drawn for places that get any token


@pytest.fixture
def masker(tokenizer: Any) -> Masker:
    return Masker(tokenizer, 0.2)


def drawn(choice: list[list[float]], act: float = 0.0) -> Draws:
    every = np.array(choice)
    return Draws(every, np.full(every.shape, act), np.full(every.shape, ANY))


def chosen(masker: Masker, ids: Any, draws: Draws, starts: Any = None) -> list[list[int]]:
    """Of each row the places that are judged."""
    labels = masker.masked(ids, draws, starts)[1]
    assert (labels[labels != IGNORED] == ids[labels != IGNORED]).all()
    return [np.flatnonzero(row).tolist() for row in labels != IGNORED]


def test_what_is_below_the_rate_is_chosen_and_specials_and_ones_never(masker, tokenizer) -> None:
    words = np.full((3, 4), 20)
    words[:, 0] = tokenizer.cls_token_id
    choice = [[0.0, 0.1, 0.2, 0.19], [0.0, 0.9, 0.5, 0.7], [0.0, 1.0, 1.0, 1.0]]
    assert chosen(masker, words, drawn(choice)) == [[1, 3], [2], []]  # at least the lowest


def test_a_word_has_the_draw_of_its_first_token_and_rows_do_not_mix(masker) -> None:
    words = np.full((2, 5), 20)
    starts = np.array([[1, 1, 0, 0, 1], [1, 0, 1, 1, 0]], dtype=bool)
    choice = [[0.9, 0.1, 0.9, 0.9, 0.15], [0.9, 0.0, 0.9, 0.1, 0.9]]
    assert chosen(masker, words, drawn(choice), starts) == [[1, 2, 3, 4], [3, 4]]


@pytest.mark.parametrize(("act", "becomes"), [(0.79, "mask"), (0.8, 20), (0.89, 20), (0.9, ANY)])
def test_what_becomes_of_a_chosen_place(masker, tokenizer, act: float, becomes: Any) -> None:
    wanted = tokenizer.mask_token_id if becomes == "mask" else becomes
    masked, labels = masker.masked(np.array([[20, 21]]), drawn([[0.1, 0.9]], act))
    assert masked.tolist() == [[wanted, 21]]
    assert labels.tolist() == [[20, IGNORED]]
