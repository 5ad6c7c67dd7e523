"""From written tokens to text: as soon as it is certain, and up to a stop word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attar.data.spelling import bytes_of

UNFINISHED = "\ufffd"  # what a tokenizer makes of bytes that are not a whole character yet
_LONGEST = 4  # bytes of a character


class Unfolding:
    """Turns tokens into text one by one; the pieces together are the text of all tokens.

    As that text is behind the tokens `before`: some tokenizers drop a space that begins a text.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before)
        self._begin, self._read = 0, len(self._ids)  # decoded again, and told already
        while self._text(self._ids[: self._read]).endswith(UNFINISHED) and not self._is_one():
            self._read -= 1  # the answer ends a character that the prompt began

    def _is_one(self) -> bool:
        """Whether what was read ends in that very character."""
        last = self._tokenizer.convert_ids_to_tokens(self._ids[: self._read][-_LONGEST:])
        return b"".join(bytes_of(each or "") or b"" for each in last).endswith(UNFINISHED.encode())

    def push(self, token: int) -> str:
        """The text that a token adds; empty while a character is not whole."""
        self._ids.append(token)
        new = self._rest()
        if new.endswith(UNFINISHED):
            return ""
        return self._told(new)

    def finish(self) -> str:
        """The text that was held back: of a character that never became whole."""
        return self._told(self._rest())

    def _rest(self) -> str:
        told = self._text(self._ids[self._begin : self._read])
        return self._text(self._ids[self._begin :])[len(told) :]

    def _told(self, new: str) -> str:
        if new:  # behind nothing but special tokens, which have no text, a text would begin anew
            self._begin, self._read = self._read, len(self._ids)
        return new

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class Stops:
    """Lets text through up to the first stop word; holds back what may begin one."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The part of the text so far that is certainly before any stop word; none after one."""
        if self.hit:
            return ""
        held = self._held + text
        found = [at for word in self._words if (at := held.find(word)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return held[: min(found)]
        keep = max((_overlap(held, word) for word in self._words), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, word: str) -> int:
    """How many of the last characters begin the word."""
    longest = min(len(text), len(word) - 1)
    return next((size for size in range(longest, 0, -1) if word.startswith(text[-size:])), 0)
