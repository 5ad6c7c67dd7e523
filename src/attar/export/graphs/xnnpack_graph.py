"""Grids in a program of ATen's as XNNPACK takes them: weights as they are, inputs in 8 bits."""

from __future__ import annotations

import hashlib
import operator
from importlib import import_module
from typing import Any

import numpy as np
import torch

from attar.export.graphs.torch_graph import Node, TorchGraph
from attar.export.graphs.weights import Coded, Floats
from attar.models import Model

_DEFINED = (  # what defines the operators of quantized programs
    "torch.ao.quantization.fx._decomposed",
    "executorch.exir.passes._quant_patterns_and_replacements",
)


class XnnpackGraph(TorchGraph):
    """A model whose linears on a grid multiply inputs that are rounded token by token.

    Scales must be positive there. Of one scale a row the sign is given to the row's output;
    those of groups are positive before they come here.
    """

    def __init__(self, model: Model, context: int) -> None:
        super().__init__(model, context)
        for module in _DEFINED:
            import_module(module)
        self._quantized: Any = torch.ops.quantized_decomposed

    def embed_coded(self, ids: Node, weights: Coded) -> Node:
        least, most = (-128, 127) if weights.signed else (0, 255)
        codes = weights.codes.astype(np.int8 if weights.signed else np.uint8)
        zeros = None if weights.zeros is None else self.constant(np.float32(weights.zeros))
        self._noted(weights, kind="look-up")
        table, scales = self.constant(codes), self.constant(weights.scales)
        return self.op(
            self._quantized.embedding_byte.default, table, scales, zeros, least, most, ids
        )

    def multiply_coded(self, x: Node, weights: Coded) -> Node:
        codes = weights.codes.astype(np.int8)
        least, most = (-8, 7) if weights.bits == 4 else (-128, 127)
        scales, signs = np.abs(weights.scales), np.sign(weights.scales[:, 0])
        if weights.per_row:
            scales = np.ascontiguousarray(scales[:, 0])
        note = {"codes": _key(_packed(codes, weights.bits)), "scales": _scales_key(scales)}
        self._noted(weights, kind="linear", **note, signs=np.flatnonzero(signs < 0).tolist())
        matrix = self._matrix(codes, scales, weights.group, (least, most))
        found = self.op(torch.ops.aten.linear.default, self._rounded(x), matrix)
        if weights.per_row and (signs < 0).any():
            found = self.times(found, self.constant(signs.astype(np.float32)))
        return found

    def _matrix(self, codes: Any, scales: Floats, group: int, ends: tuple[int, int]) -> Node:
        made, kept = self.constant(codes), self.constant(scales)
        zeros = self.constant(np.zeros(scales.shape, np.int64))
        if scales.ndim == 1:
            op = self._quantized.dequantize_per_channel.default
            return self.op(op, made, kept, zeros, 0, *ends, torch.int8)
        op = self._quantized.dequantize_per_channel_group.default
        return self.op(op, made, kept, zeros, *ends, torch.int8, group, torch.float32)

    def _rounded(self, x: Node) -> Node:
        """Inputs in 8 bits, on scales that are found for each token as it comes."""
        quantized, eight = self._quantized, (-128, 127, torch.int8)
        chosen = self.op(quantized.choose_qparams_per_token_asymmetric.default, x, torch.int8)
        scale, zero = (self.op(operator.getitem, chosen, index) for index in range(2))
        codes = self.op(quantized.quantize_per_token.default, x, scale, zero, *eight)
        back = quantized.dequantize_per_token.default
        return self.op(back, codes, scale, zero, *eight, torch.float32)

    def _noted(self, weights: Coded, **note: Any) -> None:
        """Write down how to find codes again, for who reads the file back."""
        self.notes.append(
            {
                "name": weights.name,
                "rows": weights.rows,
                "width": weights.width,
                "bits": weights.bits,
                "group": weights.group,
                **note,
            }
        )


def _packed(codes: Any, bits: int) -> Any:
    """Two codes of 4 bits a byte, the first in the low half, 8 added; a row is whole bytes."""
    if bits == 8:
        return codes
    flat = (np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))) + 8).astype(np.uint8)
    return flat[:, ::2] | flat[:, 1::2] << 4


def _key(array: Any) -> str:
    """What the file calls an array: by what is in it."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _scales_key(scales: Floats) -> str:
    """Scales of groups are bfloat16 there, which holds them exactly."""
    if scales.ndim == 1:
        return "scale_" + _key(scales)
    return "scale_" + _key((scales.view(np.uint32) >> 16).astype(np.uint16))
