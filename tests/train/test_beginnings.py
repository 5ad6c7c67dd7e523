"""Prompts that are beginnings: of texts up to the end of a word, of chats up to the answer."""

from __future__ import annotations

from typing import Any

import pytest

import tiny_models
from attar.data.example import Dataset, Example
from attar.data.tokenize import begun
from attar.train.beginnings import beginnings
from techniques.test_cross_tokenizer import LINES, byte_level
from techniques.test_on_policy import CHAT, chat, speaking

ENDS = 5  # the tiny tokenizer's


def ids(text: str) -> list[int]:
    """The tiny tokenizer's tokens of a text alone."""
    return tiny_models.tokenizer()(text, add_special_tokens=False, verbose=False).input_ids


def rows(tokenizer: Any, *texts: str, length: int = 24, most: int = 7) -> list[Any]:
    data = Dataset("train", [Example(text) for text in texts], "")
    return list(beginnings(data, tokenizer, length, most))


@pytest.mark.parametrize("most", [3, 5, 7, 8])
def test_a_prompt_ends_where_a_word_does(most: int) -> None:
    """Of tokens that are parts of words, none is left of a word that is cut."""
    tokenizer = byte_level(280)
    assert max(len(tokenizer(word).input_ids) for word in LINES[0].split()) > 2
    found = rows(tokenizer, *LINES, most=most, length=64)
    assert len(found) == len(LINES)
    for line, (before, after) in zip(LINES, found, strict=True):
        prompt = tokenizer.decode(before)
        assert line.startswith(f"{prompt} ")
        assert len(before) <= most
        assert [*before, *after] == [*tokenizer(line).input_ids, tokenizer.eos_token_id]


def test_of_a_short_text_it_is_half_and_of_a_word_nothing() -> None:
    tokenizer = tiny_models.tokenizer()
    found = rows(tokenizer, "w1 w2 w3 w4", "w5", "w6 w7 w8")
    assert [tokenizer.decode(before) for before, _ in found] == ["w1 w2", "w6"]
    assert [tokenizer.decode(after[:-1]) for _, after in found] == ["w3 w4", "w7 w8"]
    assert {after[-1] for _, after in found} == {ENDS}


def test_running_text_begins_at_lines() -> None:
    tokenizer = tiny_models.tokenizer()
    lines = [" ".join(f"w{(7 * line + at) % 90}" for at in range(10)) for line in range(9)]
    found = rows(tokenizer, "\n".join(lines))
    starts = [tokenizer.decode(before[:1]) for before, _ in found]
    assert set(starts) <= {line.split()[0] for line in lines}
    assert {len(before) for before, _ in found} == {7, 5}  # the last line, alone, has ten words
    whole = [token for before, after in found for token in (*before, *after)]
    assert whole == [*ids("\n".join(lines)), ENDS]
    assert [after[-1] == ENDS for _, after in found] == [False] * (len(found) - 1) + [True]


def test_rows_are_cut_at_the_end_alone() -> None:
    (first, *_) = rows(tiny_models.tokenizer(), " ".join(["w1"] * 60), length=24)
    assert len(first[0]) + len(first[1]) <= 24
    assert len(first[0]) == 7


def test_where_no_word_ends_any_character_may() -> None:
    assert begun("the old whale", 9) == "the old"
    assert begun("the old whale", 7) == "the old"
    assert begun("one\ntwo three", 5) == "one"
    assert begun("\u6211\u4eec\u4eca\u5929\u53bb\u5317\u4eac", 4) == "\u6211\u4eec\u4eca\u5929"


def test_a_template_that_writes_given_answers_another_way() -> None:
    tokenizer = speaking(CHAT + "{% if add_generation_prompt %}w89 {% endif %}")
    data = Dataset("train", [chat("w1 w2", "w3")], "")
    ((before, after),) = beginnings(data, tokenizer, 16, 8)
    assert tokenizer.decode(before) == "w1 w2 [SEP] w89"
    assert after == [*ids("w3"), ENDS]
