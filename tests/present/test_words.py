from __future__ import annotations

import re
import string

import pytest

from attar.errors import UserError
from attar.present.figures import ORDER
from attar.present.words import WORDS, Words


@pytest.mark.parametrize("language", sorted(WORDS))
def test_every_language_has_the_same_words(language: str) -> None:
    assert WORDS[language].keys() == WORDS["en"].keys()
    assert all(isinstance(text, str) for text in WORDS[language].values())


@pytest.mark.parametrize("language", sorted(WORDS))
def test_every_language_fills_in_the_same_values(language: str) -> None:
    def fields(text: str) -> set[str | None]:
        return {field for _, field, _, _ in string.Formatter().parse(text) if field}

    for word, text in WORDS["en"].items():
        assert fields(WORDS[language][word]) == fields(text), word


def test_chinese_words_are_chinese() -> None:
    same = {word for word, text in WORDS["zh"].items() if text == WORDS["en"][word]}
    # Only what holds no word of its own may be alike.
    assert all(re.fullmatch(r"headline\.quality|gap", word) for word in same), same


@pytest.mark.parametrize("language", sorted(WORDS))
def test_every_known_figure_has_a_name(language: str) -> None:
    assert all(f"figure.{name}" in WORDS[language] for name in ORDER)


def test_an_unknown_language_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'fr'.*en, zh"):
        Words("fr")
