"""A .tflite file that is written tensor by tensor and operator by operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

Shape = tuple[int, ...]  # -1 is the length, which varies
_TYPES = {"float32": "FLOAT32", "int32": "INT32", "int8": "INT8", "bool": "BOOL"}
_VERSION, _ALIGNED = 3, 16


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: its number, its shape, and its type."""

    index: int
    shape: Shape
    dtype: str = "float32"


class TfliteFile:
    """Tensors, operators, inputs and outputs, and at last one file."""

    def __init__(self) -> None:
        self.schema: Any = import_module("ai_edge_litert.schema_py_generated")
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [self.schema.BufferT()]  # the first is empty by agreement
        self._operators: list[Any] = []
        self._codes: dict[int, int] = {}
        self._arrays: dict[str, Value] = {}
        self._inputs: list[Value] = []
        self._outputs: list[Value] = []

    def tensor(self, shape: Shape, dtype: str = "float32", name: str = "") -> Value:
        """A tensor that is computed, or given."""
        kept = self._tensor(name or f"value_{len(self._tensors)}", shape, dtype)
        if -1 in shape:
            kept.shapeSignature = list(shape)
        return Value(len(self._tensors) - 1, shape, dtype)

    def _tensor(self, name: str, shape: Shape, dtype: str, buffer: int = 0) -> Any:
        kept = self.schema.TensorT()
        kept.name, kept.buffer, kept.hasRank = name.encode(), buffer, True
        kept.shape = [max(1, size) for size in shape]
        kept.type = getattr(self.schema.TensorType, _TYPES.get(dtype, dtype.upper()))
        self._tensors.append(kept)
        return kept

    def array(self, name: str, value: Any, scales: Any = None, packed: str = "") -> Value:
        """Numbers that the file holds, once under this name.

        With `scales`, codes of rows that have one each; `packed` is "int4" where two codes are to
        share a byte.
        """
        if name in self._arrays:
            return self._arrays[name]
        array = np.ascontiguousarray(value)
        data = _packed(array) if packed else array
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(data.tobytes(), np.uint8)
        self._buffers.append(buffer)
        dtype, shape = packed or array.dtype.name, tuple(array.shape)
        kept = self._tensor(name, shape, dtype, len(self._buffers) - 1)
        if scales is not None:
            kept.quantization = self.schema.QuantizationParametersT()
            kept.quantization.scale = np.asarray(scales, np.float32)
            kept.quantization.zeroPoint = np.zeros(len(scales), np.int64)
        self._arrays[name] = Value(len(self._tensors) - 1, shape, dtype)
        return self._arrays[name]

    def constant(self, value: Any, dtype: Any = np.float32) -> Value:
        """A small array, named after what it holds."""
        array = np.array(value, dtype)
        return self.array(f"{array.dtype.name}:{array.tolist()}", array)

    def input(self, name: str, shape: Shape, dtype: str) -> Value:
        """Add an input."""
        self._inputs.append(self.tensor(shape, dtype, name))
        return self._inputs[-1]

    def output(self, value: Value, name: str) -> None:
        """Make a value an output, under this name."""
        self._tensors[value.index].name = name.encode()
        self._outputs.append(value)

    def operator(
        self,
        op: str,
        inputs: Sequence[Value],
        output: Shape,
        dtype: str = "float32",
        options: tuple[str, Mapping[str, Any]] | None = None,
    ) -> Value:
        """Add an operator; its one output. `options`: their kind, and their fields."""
        found = self.tensor(output, dtype)
        kept = self.schema.OperatorT()
        code = getattr(self.schema.BuiltinOperator, op)
        kept.opcodeIndex = self._codes.setdefault(code, len(self._codes))
        kept.inputs, kept.outputs = [each.index for each in inputs], [found.index]
        if options is not None:
            kind, fields = options
            kept.builtinOptions = getattr(self.schema, f"{kind}T")()
            kept.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)
            for name, value in fields.items():
                setattr(kept.builtinOptions, name, value)
        self._operators.append(kept)
        return found

    def save(self, path: Path) -> None:
        """Write the file."""
        import flatbuffers

        schema = self.schema
        model, graph = schema.ModelT(), schema.SubGraphT()
        graph.tensors, graph.operators, graph.name = self._tensors, self._operators, b"main"
        graph.inputs = [value.index for value in self._inputs]
        graph.outputs = [value.index for value in self._outputs]
        model.version, model.description = _VERSION, b"attar"
        model.subgraphs, model.buffers = [graph], self._buffers
        model.operatorCodes = [self._code(code) for code in self._codes]
        model.signatureDefs = [self._signature()]
        for buffer in self._buffers:
            if buffer.data is not None:
                buffer.Pack = _aligned(schema, buffer.data)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())

    def _code(self, code: int) -> Any:
        found = self.schema.OperatorCodeT()
        found.builtinCode, found.deprecatedBuiltinCode = code, min(code, 127)
        found.version = 1
        return found

    def _signature(self) -> Any:
        found = self.schema.SignatureDefT()
        found.signatureKey, found.subgraphIndex = b"serving_default", 0
        found.inputs = [self._map(value) for value in self._inputs]
        found.outputs = [self._map(value) for value in self._outputs]
        return found

    def _map(self, value: Value) -> Any:
        found = self.schema.TensorMapT()
        found.name, found.tensorIndex = self._tensors[value.index].name, value.index
        return found


def _packed(codes: Any) -> Any:
    """Codes of 4 bits, two a byte, the first in the low half."""
    flat = (codes.reshape(-1) & 15).astype(np.uint8)
    flat = np.pad(flat, (0, len(flat) % 2))
    return flat[::2] | flat[1::2] << 4


def _aligned(schema: Any, data: Any) -> Any:
    """Writes a buffer at a multiple of 16 bytes, which the format asks for."""

    def pack(builder: Any) -> int:
        builder.StartVector(1, len(data), _ALIGNED)
        builder.head -= len(data)
        builder.Bytes[builder.head : builder.head + len(data)] = data.tobytes()
        place = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, place)
        return schema.BufferEnd(builder)

    return pack
