"""Codes as ONNX Runtime's MatMulNBits and GatherBlockQuantized keep them, and back again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attar.export.graphs.weights import Coded, Floats

Bytes = NDArray[np.uint8]
_BLOCKS = (256, 128, 64, 32, 16)


@dataclass(frozen=True)
class Blocks:
    """data: uint8 [rows, blocks, bytes]; scales: [rows, blocks]; zeros: uint8 or None."""

    data: Bytes
    scales: Floats
    zeros: Bytes | None
    size: int


def block_size(coded: Coded) -> int:
    """Inputs in a block: the group, or the largest that divides a row with one scale."""
    if not coded.per_row:
        return coded.group
    return next((size for size in _BLOCKS if coded.width % size == 0), 32)


def blocks(coded: Coded) -> Blocks:
    """Codes as unsigned blocks, the last of a row filled up with the code of zero."""
    size = block_size(coded)
    count = -(-coded.width // size)
    middle = 1 << (coded.bits - 1)
    codes = coded.codes + middle if coded.signed else coded.codes
    codes = np.pad(codes, ((0, 0), (0, count * size - coded.width)), constant_values=middle)
    repeat = count // coded.scales.shape[1]
    zeros = coded.zeros if coded.zeros is None else np.repeat(coded.zeros, repeat, 1)
    return Blocks(
        _packed(codes.astype(np.uint8), coded.bits).reshape(coded.rows, count, -1),
        np.ascontiguousarray(np.repeat(coded.scales, repeat, 1)),
        None if zeros is None else _packed(zeros.astype(np.uint8), coded.bits),
        size,
    )


def _packed(codes: Bytes, bits: int) -> Bytes:
    """Two codes a byte, the first in the low half; an odd row ends in half a byte."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)
