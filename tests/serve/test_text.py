"""Tokens become text as soon as it is certain, and stop words are found wherever they are cut."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

import tiny_models
from attar.serve.text import Stops, Unfolding
from serve.fakes import tokenizer


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40))
def test_pieces_are_the_text(text: str):
    unfolding = Unfolding(tokenizer())
    ids = tokenizer()(text)["input_ids"]
    pieces = [unfolding.push(token) for token in ids]
    assert "".join([*pieces, unfolding.finish()]) == text
    assert not any(piece.endswith("�") for piece in pieces) or "�" in text


def test_a_character_waits_for_all_of_its_bytes():
    unfolding = Unfolding(tokenizer())
    pieces = [unfolding.push(token) for token in tokenizer()("é中")["input_ids"]]
    assert pieces == ["", "é", "", "", "中"]


def test_an_answer_ends_a_character_that_its_prompt_began():
    first, *rest = tokenizer()("中b")["input_ids"]
    unfolding = Unfolding(tokenizer(), [*tokenizer()("a")["input_ids"], first])
    assert [unfolding.push(token) for token in rest] == ["", "中", "b"]


def test_a_prompt_may_end_in_the_character_that_stands_for_broken_ones():
    unfolding = Unfolding(tokenizer(), tokenizer()("ab\ufffd")["input_ids"])
    assert [unfolding.push(token) for token in tokenizer()("cd")["input_ids"]] == ["c", "d"]


def test_a_broken_character_comes_at_the_end():
    unfolding = Unfolding(tokenizer())
    first, *_ = tokenizer()("中")["input_ids"]
    assert unfolding.push(first) == ""
    assert unfolding.finish() == "�"


def test_words_keep_the_spaces_between_them():
    plain = tiny_models.tokenizer()
    ids = plain("w1 w2 w3", add_special_tokens=False)["input_ids"]
    unfolding = Unfolding(plain)
    assert [unfolding.push(token) for token in ids] == ["w1", " w2", " w3"]


def spaced() -> Any:
    """A tokenizer that keeps spaces in its words, and drops the one that begins a text."""
    words = ["<unk>", "<s>", "\u2581Paris", "\u2581is", "\u2581the", ",", "s"]
    vocabulary = {word: index for index, word in enumerate(words)}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    steps = [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    plain.decoder = decoders.Sequence(steps)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>")


def test_an_answer_goes_on_where_its_prompt_ends():
    prompt, answer = [4, 3], [2, 5, 4, 2]
    behind, alone = Unfolding(spaced(), prompt), Unfolding(spaced())
    assert [behind.push(token) for token in answer] == [" Paris", ",", " the", " Paris"]
    assert [alone.push(token) for token in answer] == ["Paris", ",", " the", " Paris"]


@given(st.lists(st.sampled_from([1, 2, 3, 4, 5, 6]), max_size=12))
def test_special_tokens_that_are_left_out_take_no_space_with_them(ids: list[int]):
    unfolding = Unfolding(spaced())
    pieces = [unfolding.push(token) for token in ids]
    assert "".join([*pieces, unfolding.finish()]) == spaced().decode(ids, skip_special_tokens=True)


@given(st.lists(st.text("ab", max_size=4)), st.lists(st.text("ab", min_size=1, max_size=4)))
def test_text_ends_before_the_first_stop_word(pieces: list[str], words: list[str]):
    stops = Stops(words)
    out = []
    for piece in pieces:
        out.append(stops.push(piece))
        if stops.hit:
            break
    else:
        out.append(stops.finish())
    # one character at a time, the first time that any word is there
    seen, cut = "", None
    for character in "".join(pieces):
        seen += character
        ended = [len(seen) - len(word) for word in words if seen.endswith(word)]
        if ended:
            cut = min(ended)
            break
    found = "".join(out)
    if cut is None:
        assert not stops.hit
        assert found == "".join(pieces)
    else:
        assert stops.hit
        assert found == "".join(pieces)[: len(found)]
        assert not any(word in found for word in words)
        assert len(found) <= cut
        # a piece that comes whole may end in another word sooner than its letters one by one do
        if all(len(piece) < 2 for piece in pieces):
            assert len(found) == cut


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_stop_word_across_pieces(cut: int):
    stops, text = Stops(["STOP"]), "to STOP."
    out = stops.push(text[:cut]) + stops.push(text[cut:])
    assert (out, stops.hit) == ("to ", True)


def test_what_only_looked_like_a_stop_word_comes_out():
    stops = Stops(["STOP"])
    assert [stops.push("a ST"), stops.push("A"), stops.push(" ST"), stops.finish()] == [
        "a ",
        "STA",
        " ",
        "ST",
    ]
