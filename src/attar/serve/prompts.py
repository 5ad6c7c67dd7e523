"""From what a client sent to token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from attar.serve.errors import ApiError
from attar.serve.opening import Loaded
from attar.serve.schemas import Message

Input = str | list[int] | list[str] | list[list[int]]
_LETTERS = 8  # of a token; few texts have more
_CUT = 128  # tokens by which a cut within its last word may make a text longer


async def chat_ids(model: Loaded, messages: Sequence[Message]) -> list[int]:
    """A chat as the model's template writes it, ready for the answer. Raises ApiError."""
    turns = [message.plain() for message in messages]
    return await asyncio.to_thread(_chat_ids, model, turns)


def _chat_ids(model: Loaded, turns: list[dict[str, str]]) -> list[int]:
    if not getattr(model.tokenizer, "chat_template", None):
        raise ApiError(
            400,
            f"{model.name} has no chat template; ask it with /v1/completions",
            "no_chat_template",
            "messages",
        )
    try:
        text: Any = model.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template's own `raise_exception` raises just a TemplateError
        refused = type(error) is TemplateError
        reason = str(error).partition("\n")[0][:200]
        said = f"the model's chat template {'refuses' if refused else 'fails on'} these messages"
        cause = None if refused else error  # which the log then shows
        raise ApiError(400, f"{said}: {reason}", None, "messages") from cause
    return _ids(model, text, special=False)


async def prompt_ids(model: Loaded, given: Input, most: int, field: str) -> list[list[int]]:
    """The ids of one text or several, none of them empty or too long. Raises ApiError."""
    texts: Any = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    if len(texts) > most:
        raise ApiError(400, f"{field} holds {len(texts)} texts, more than {most}", None, field)
    rows = await asyncio.to_thread(
        lambda: [_ids(model, text) if isinstance(text, str) else text for text in texts]
    )
    words = len(model.tokenizer)
    for ids in rows:
        if not ids:
            raise ApiError(400, f"{field} holds a text without any token", None, field)
        if max(ids) >= words:
            raise ApiError(400, f"{field} holds a token beyond the {words} there are", None, field)
        if len(ids) > model.context:
            raise too_long(model, len(ids), field)
    return rows


def _ids(model: Loaded, text: str, special: bool = True) -> list[int]:
    """The ids of a text; where it is far too long those of its beginning, which is so too."""

    def read(part: str) -> list[int]:
        return model.tokenizer(part, add_special_tokens=special, verbose=False)["input_ids"]

    size = _LETTERS * model.context
    while size < len(text):
        ids = read(text[:size])
        if len(ids) > model.context + _CUT:
            return ids
        size *= 4  # of spaces, say, a tokenizer makes nothing
    return read(text)


def too_long(model: Loaded, count: int, field: str, more: int = 0) -> ApiError:
    """The error of a text that does not fit."""
    told = f"at least {count}" if count > model.context + _CUT else f"{count}"
    wanted = f"{told} tokens" + (f" and {more} of the answer" if more else "")
    return ApiError(
        400,
        f"{wanted} are more than the {model.context} that {model.name} takes here",
        "context_length_exceeded",
        field,
    )
