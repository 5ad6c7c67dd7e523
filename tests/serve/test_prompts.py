"""From texts to token ids: all of a text that may fit, and little of one that cannot."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from attar.serve.errors import ApiError
from attar.serve.opening import Loaded
from attar.serve.prompts import chat_ids, prompt_ids
from attar.serve.schemas import Message
from serve.fakes import TEMPLATE, tokenizer
from tiny_models import tiny

CONTEXT = 100


class Seen:
    """A tokenizer that tells how much it was given."""

    chat_template = TEMPLATE

    def __init__(self, real: Any) -> None:
        self._real, self.letters = real, 0

    def __call__(self, text: str, **more: Any) -> Any:
        self.letters += len(text)
        return self._real(text, **more)

    def __len__(self) -> int:
        return len(self._real)

    def apply_chat_template(self, *given: Any, **more: Any) -> Any:
        return self._real.apply_chat_template(*given, **more)


def model(seen: Seen) -> Loaded:
    load: Any = None
    return Loaded("m", "causal-lm", "fake", seen, load, 0, CONTEXT)


def refused(work: Any) -> ApiError:
    with pytest.raises(ApiError) as error:
        asyncio.run(work)
    assert (error.value.status, error.value.code) == (400, "context_length_exceeded")
    return error.value


def test_of_a_text_that_cannot_fit_little_is_read():
    seen = Seen(tokenizer())
    error = refused(prompt_ids(model(seen), "word " * 200_000, 1, "prompt"))
    assert error.message.startswith("at least 800 tokens are more than the 100")
    assert seen.letters == 800
    assert refused(prompt_ids(model(seen), "x" * 101, 1, "prompt")).message.startswith("101 tokens")
    many = Seen(tokenizer())
    turns = [Message(role="user", content="word " * 200_000)]
    assert len(asyncio.run(chat_ids(model(many), turns))) > CONTEXT
    assert many.letters == 800


@pytest.mark.parametrize(
    "text",
    [
        "w1 " * 90,
        "w1 " + " " * 100_000 + "w2",  # spaces are no tokens
        "w" * 5_000 + " w1",  # a word that is too long is one
        " " * 3_199 + "w1 " * 90,
    ],
)
def test_a_text_that_fits_is_read_whole(text: str):
    real = cast("Any", tiny("bert").tokenizer)
    (row,) = asyncio.run(prompt_ids(model(Seen(real)), text, 1, "input"))
    assert row == real(text)["input_ids"]
