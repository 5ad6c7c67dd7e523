"""Codes in the blocks of 32 weights that ggml's types are made of.

The layouts are those of ggml: `q4_0` a float16 scale and 16 bytes, `q4_1` a float16 scale, a
float16 minimum and 16 bytes, `q8_0` a float16 scale and 32 bytes, `mxfp4` the exponent of its
scale and 16 bytes. Four-bit codes lie in pairs: byte i holds code i below and code i + 16 above.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
Bytes = NDArray[np.uint8]
Numbers = NDArray[np.floating]


def q4_0(codes: NDArray[np.integer], scales: Numbers) -> Bytes:
    """Codes from -8 to 7, [rows, width], scales [rows, width / 32]: [rows, width / 32 * 18]."""
    return _joined(_halves(scales), _nibbles(codes + 8))


def q4_1(codes: NDArray[np.integer], scales: Numbers, minima: Numbers) -> Bytes:
    """Codes from 0 to 15, scales and minima [rows, width / 32]: [rows, width / 32 * 20]."""
    return _joined(_halves(scales), _halves(minima), _nibbles(codes))


def q8_0(codes: NDArray[np.integer], scales: Numbers) -> Bytes:
    """Codes from -127 to 127, scales [rows, width / 32]: [rows, width / 32 * 34]."""
    return _joined(_halves(scales), _blocks(codes).astype(np.int8).view(np.uint8))


def mxfp4(codes: NDArray[np.integer], scales: Numbers) -> Bytes:
    """Patterns of E2M1 and scales that are powers of two: [rows, width / 32 * 17]."""
    powers = np.log2(scales.astype(np.float64)) + 127
    return _joined(powers.astype(np.uint8)[..., None], _nibbles(codes))


def _blocks(codes: NDArray[np.integer]) -> NDArray[np.integer]:
    return codes.reshape(len(codes), -1, BLOCK)


def _nibbles(codes: NDArray[np.integer]) -> Bytes:
    parts = _blocks(codes).astype(np.uint8)
    low, high = parts[..., : BLOCK // 2], parts[..., BLOCK // 2 :]
    return low | (high << np.uint8(4))


def _halves(values: Numbers) -> Bytes:
    """float16 numbers as two bytes each, little-endian: [rows, blocks, 2]."""
    return np.ascontiguousarray(values.astype("<f2"))[..., None].view(np.uint8)


def _joined(*parts: Bytes) -> Bytes:
    whole = np.concatenate(parts, -1)
    return whole.reshape(len(whole), -1)
