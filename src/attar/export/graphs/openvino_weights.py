"""Matrices in OpenVINO: floats, and codes as its plugins read compressed or integer weights."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

from attar.export.graphs.weights import Coded, Dense, Floats
from attar.ops.activations import InputGrid

Node = Any  # openvino's own types come without stubs that tell nodes from outputs
SCALES, ZEROS = "/scales", "/zeros"  # after the name of what they belong to
_TYPES = {(4, True): "i4", (4, False): "u4", (8, True): "i8", (8, False): "u8"}


class OpenvinoWeights:
    """Constants of a model, each kept once; floats in 16 bits where that holds them exactly."""

    def __init__(self) -> None:
        import openvino
        from openvino import opset15

        self._openvino, self._ops = openvino, opset15
        self._kept: dict[Any, Node] = {}

    def floats(self, name: str, value: Floats) -> Node:
        """An array of floats."""
        if name not in self._kept:
            ops, kind = self._ops, self._openvino.Type
            if value.ndim > 1 and not (value.view(np.uint32) & 0xFFFF).any():
                found = ops.convert(ops.constant(value, kind.bf16, name=name), kind.f32)
            else:
                found = ops.constant(value, kind.f32, name=name)
            self._kept[name] = found
        return self._kept[name]

    def matrix(self, weights: Coded | Dense) -> Node:
        """A matrix, [rows, width], in float32 once it is computed."""
        if isinstance(weights, Dense):
            return self.floats(weights.name, weights.weight)
        if weights.name not in self._kept:
            made = self._integers(weights) if weights.integers else self._compressed(weights)
            self._kept[weights.name] = made
        return self._kept[weights.name]

    def _integers(self, coded: Coded) -> Node:
        """Codes and scales of rows, which multiply with rounded inputs as whole numbers."""
        ops, kind = self._ops, self._openvino.Type
        codes = ops.convert(self._codes(coded.name, coded.codes, 8, signed=True), kind.f32)
        scales = ops.constant(coded.scales, kind.f32, name=coded.name + SCALES)
        return ops.multiply(codes, scales)

    def _compressed(self, coded: Coded) -> Node:
        """Codes, zero points and scales; the plugin keeps them so, and rounds inputs by itself."""
        ops, kind = self._ops, self._openvino.Type
        parts = coded.width // _group(coded)
        grouped = parts > 1
        shape = (coded.rows, parts, -1) if grouped else (coded.rows, coded.width)
        tail = (coded.rows, parts, 1) if grouped else (coded.rows, 1)
        repeat = parts // coded.scales.shape[1]
        codes = self._codes(coded.name, coded.codes.reshape(shape), coded.bits, coded.signed)
        found = ops.convert(codes, kind.f16)
        if coded.zeros is not None:
            zeros = np.repeat(coded.zeros, repeat, 1).reshape(tail)
            kept = self._codes(coded.name + ZEROS, zeros, coded.bits, signed=False)
            found = ops.subtract(found, ops.convert(kept, kind.f16))
        scales = np.repeat(coded.scales, repeat, 1).reshape(tail)
        found = ops.multiply(found, ops.constant(scales, kind.f16, name=coded.name + SCALES))
        if grouped:
            whole = ops.constant(np.array([coded.rows, coded.width]))
            found = ops.reshape(found, whole, special_zero=False)
        return ops.convert(found, kind.f32)

    def _codes(self, name: str, codes: Any, bits: int, signed: bool) -> Node:
        dtype = getattr(self._openvino.Type, _TYPES[bits, signed])
        if bits == 8:
            array = np.ascontiguousarray(codes.astype(np.int8 if signed else np.uint8))
            return self._ops.constant(array, dtype, name=name)
        flat = (codes.reshape(-1) & 15).astype(np.uint8)
        flat = np.pad(flat, (0, len(flat) % 2))
        packed = np.ascontiguousarray(flat[::2] | flat[1::2] << 4)
        tensor = self._openvino.Tensor(packed, self._openvino.Shape(list(codes.shape)), dtype)
        found = self._ops.constant(tensor, shared_memory=False)
        found.set_friendly_name(name)
        return found

    def rounded(self, x: Node, grid: InputGrid, factor: float = 1.0) -> Node:
        """Numbers, multiplied by a power of two before, on the 256 of a grid."""
        scale = np.float32(grid.scale)
        ends = [np.float32(end - grid.zero) * scale for end in (0, 255)]
        taken = [end * np.float32(factor) for end in ends]
        return self._ops.fake_quantize(x, *taken, *ends, 256)


def _group(coded: Coded) -> int:
    """Inputs that share a scale here, where a row must be whole groups; its width for one scale."""
    return coded.width if coded.per_row else gcd(coded.group, coded.width)
