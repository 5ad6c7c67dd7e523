"""Classes with codes in a few bytes each, and numbers in 16 bits."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import torch
from torch import Tensor

STEP = 1 / 512  # of 16-bit numbers, which so reach from -64 to 64
_SHORT, _LONG = 3, 4  # bytes of a word
_WIDEST = 18  # bits of a class in a short word: 6 are left for the code


def coded(values: Tensor) -> Tensor:
    """Numbers in 16 bits, in steps of STEP."""
    return (values / STEP).round().clamp(-(2**15) + 1, 2**15 - 1).to(torch.int16)


def _bits(classes: int) -> tuple[int, int]:
    """Bits of a class, and bytes of a word."""
    bits = max(1, (classes - 1).bit_length())
    return bits, _SHORT if bits <= _WIDEST else _LONG


def levels_of(classes: int) -> int:
    """The highest code beside a class."""
    bits, size = _bits(classes)
    return 2 ** (8 * size - bits) - 1


def words_of(ids: Tensor, codes: Tensor, classes: int) -> Tensor:
    """A class and a code in each word: [positions, entries] -> uint8 [positions, bytes]."""
    bits, size = _bits(classes)
    word = codes << bits | ids
    parts = [(word >> (8 * place)) & 255 for place in range(size)]
    return torch.stack(parts, -1).flatten(1).to(torch.uint8)


def entries_of(words: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The classes and codes of words, [positions, entries] each."""
    bits, size = _bits(classes)
    parts = words.view(len(words), -1, size).long()
    word = sum((parts[..., place] << (8 * place) for place in range(size)), parts.new_zeros(()))
    return word & ((1 << bits) - 1), word >> bits
