"""What a tokenizer's tokens say: the bytes of each, and where in a text each ends."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, cast

import numpy as np

from attar.errors import UserError

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how a byte is written that has no token of its own
_WORD_PIECE = "##"
_METASPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True)
class Placed:
    """The tokens of a text: ids, [tokens], and characters, [tokens], where each starts and ends."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Characters that tokens end at and none goes on over, and the tokens up to there."""
        ends = np.maximum.accumulate(self.ends)
        following = np.append(self.starts[1:], np.iinfo(np.int64).max)
        later = np.append(ends[1:], np.iinfo(np.int64).max)
        last = ((following >= ends) & (later > ends)).nonzero()[0]
        return ends[last], last + 1


class Spelling:
    """A tokenizer seen as a way to spell texts. Raises UserError where it tells no places."""

    def __init__(self, tokenizer: Any, whose: str) -> None:
        self.tokenizer, self.whose = tokenizer, whose
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"the {whose}'s tokenizer does not say which characters a token stands for, so "
                "texts cannot be aligned. Give a model with a tokenizer.json"
            )

    def place(self, texts: Sequence[str]) -> list[Placed]:
        """The tokens of every text, without special tokens around it."""
        found = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        placed: list[Placed] = []
        for ids, places in zip(found["input_ids"], found["offset_mapping"], strict=True):
            pairs = np.array(places, dtype=np.int64).reshape(-1, 2)
            placed.append(Placed(np.array(ids, dtype=np.int64), pairs[:, 0], pairs[:, 1]))
        return placed

    @cached_property
    def tokens(self) -> list[bytes]:
        """What each token says, by its id; a space before it included where it has one."""
        vocabulary = cast("dict[str, int]", self.tokenizer.get_vocab())
        added = {int(number) for number in self.tokenizer.added_tokens_decoder}
        says = _reader(self.tokenizer)
        found = [b""] * (max(vocabulary.values()) + 1)
        for token, number in vocabulary.items():
            as_it_is = number in added and not _BYTE.fullmatch(token)
            found[number] = token.encode() if as_it_is else says(token)
        return found

    @property
    def special(self) -> set[int]:
        """Ids that stand for no text."""
        return set(self.tokenizer.all_special_ids)


def bytes_of(token: str) -> bytes | None:
    """The bytes that a token is written for where tokens are of bytes; None where it tells none."""
    byte = _BYTE.fullmatch(token)
    if byte:
        return bytes([int(byte[1], 16)])
    table = _byte_letters()
    if not token or any(letter not in table for letter in token):
        return None
    return bytes(table[letter] for letter in token)


def shared(own: Spelling, theirs: Spelling) -> list[tuple[int, int]]:
    """Ids of the tokens that say the same in both, pair by pair, and of the end of a text."""
    mine, yours = own.special, theirs.special
    there = {
        says: number
        for number, says in reversed(list(enumerate(theirs.tokens)))
        if says and number not in yours
    }
    pairs: list[tuple[int, int]] = []
    seen: set[bytes] = set()
    for number, says in enumerate(own.tokens):
        if says in there and says not in seen and number not in mine:
            seen.add(says)
            pairs.append((number, there[says]))
    ends = own.tokenizer.eos_token_id, theirs.tokenizer.eos_token_id
    if None not in ends:
        pairs.append(cast("tuple[int, int]", ends))
    return pairs


def _reader(tokenizer: Any) -> Any:
    """A function from the way this tokenizer writes a token to the bytes that it stands for."""
    how = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
    if '"ByteLevel"' in how:
        table = _byte_letters()
        return lambda token: bytes(table[letter] for letter in token if letter in table)
    if '"WordPiece"' in how:
        return _of_word_piece
    return _plain


def _of_word_piece(token: str) -> bytes:
    inside = token.startswith(_WORD_PIECE)
    return token.removeprefix(_WORD_PIECE).encode() if inside else b" " + token.encode()


def _plain(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    if byte:
        return bytes([int(byte[1], 16)])
    return token.replace(_METASPACE, " ").encode("utf-8", "surrogatepass")


@cache
def _byte_letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes as: printable ones as they are."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    moved = {chr(256 + number): byte for number, byte in enumerate(others)}
    return {chr(byte): byte for byte in plain} | moved
