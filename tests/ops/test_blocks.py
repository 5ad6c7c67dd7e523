"""Blocks of ggml's types, read by gguf's own functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attar.core.levels import LEVELS
from attar.ops import blocks

gguf = pytest.importorskip("gguf")
RANDOM = np.random.default_rng(0)
SCALES = RANDOM.choice([0.5, -0.25, 2.0**-14, 3.5], (3, 2)).astype(np.float32)
MINIMA = RANDOM.choice([0.5, -0.375, 2.0**-10], (3, 2)).astype(np.float32)


def wide(values: Any) -> Any:
    return np.repeat(values.astype(np.float64), 32, 1)


def read(data: Any, kind: str) -> Any:
    return gguf.quants.dequantize(data, getattr(gguf.GGMLQuantizationType, kind))


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("q4_0", -8, 7), ("q8_0", -127, 127)], ids=["q4_0", "q8_0"]
)
def test_symmetric(kind: str, low: int, high: int) -> None:
    codes = RANDOM.integers(low, high + 1, (3, 64))
    data = getattr(blocks, kind)(codes, SCALES)
    assert np.array_equal(read(data, kind.upper()), codes * wide(SCALES))


def test_a_minimum_is_added() -> None:
    codes = RANDOM.integers(0, 16, (3, 64))
    found = read(blocks.q4_1(codes, SCALES, MINIMA), "Q4_1")
    assert np.array_equal(found, codes * wide(SCALES) + wide(MINIMA))


def test_floats_of_four_bits() -> None:
    codes, scales = RANDOM.integers(0, 16, (3, 64)), np.exp2(RANDOM.integers(-9, 4, (3, 2)))
    levels = np.array(LEVELS["mxfp4"])[codes]
    assert np.array_equal(read(blocks.mxfp4(codes, scales), "MXFP4"), levels * wide(scales))
