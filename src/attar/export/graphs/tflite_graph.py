"""The operations in LiteRT's own format, TensorFlow Lite's: of one row of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attar.export.graphs.graph import Function, Graph, Heads, Norm, Rotary
from attar.export.graphs.tflite_file import Shape, TfliteFile, Value
from attar.export.graphs.weights import Coded, Dense
from attar.models import Model

_HIDDEN = -1e30  # added to the scores of keys that must not be seen


class TfliteGraph(Graph[Value]):
    """A model of one row: `input_ids` and `attention_mask`, int32 [1, length].

    A decoder's takes `input_ids` and `positions`, int32 [length], with the keys and values of
    `context` tokens, [heads, context, size], and gives them back with the new ones in place.
    """

    def __init__(self, model: Model, file: TfliteFile, context: int) -> None:
        super().__init__(model)
        self.file, self.context = file, context
        self._ids = file.input("input_ids", (1, -1), "int32")
        self._decoder = model.task == "causal-lm"
        given = ("positions", (-1,)) if self._decoder else ("attention_mask", (1, -1))
        self._given = file.input(*given, "int32")
        self._kept: dict[Any, Any] = {}
        self._presents: list[tuple[Value, str]] = []

    def _op(self, op: str, *inputs: Value, shape: Shape, dtype: str = "", **fields: Any) -> Value:
        kind = fields.pop("options", None)
        options = (kind, fields) if kind else None
        return self.file.operator(op, inputs, shape, dtype or inputs[0].dtype, options)

    def _whole(self, *values: int) -> Value:
        return self.file.constant(list(values), np.int32)

    def ids(self) -> Value:
        return self._ids

    def embed(self, ids: Value, weights: Coded | Dense) -> Value:
        flat = self._shaped(ids, -1)
        table = self._matrix(weights)
        shape = (-1, table.shape[1])
        found = self._op("EMBEDDING_LOOKUP", flat, table, shape=shape, dtype="float32")
        signs = self._signs(weights)
        if signs is not None:
            column = self._shaped(signs, -1, 1)
            found = self.times(found, self._gathered(column, flat))
        return self._shaped(found, 1, -1, table.shape[1])

    def _matrix(self, weights: Coded | Dense) -> Value:
        if isinstance(weights, Dense):
            return self.file.array(weights.name, weights.weight)
        packed = "int4" if weights.bits == 4 else ""
        codes = weights.codes.astype(np.int8)
        return self.file.array(weights.name, codes, np.abs(weights.scales[:, 0]), packed)

    def _signs(self, weights: Coded | Dense) -> Value | None:
        """Of the scales of rows, which the format wants positive; None where all are."""
        if isinstance(weights, Dense) or (weights.scales > 0).all():
            return None
        return self.file.array(f"{weights.name}.signs", np.sign(weights.scales[:, 0]))

    def places(self, weights: Dense, padding: int | None) -> Value:
        other = -1 if padding is None else padding
        real = self._op("NOT_EQUAL", self._ids, self._whole(other), shape=(1, -1), dtype="bool")
        real = self._op("CAST", real, shape=(1, -1), dtype="int32")
        kind = {"options": "CumsumOptions", "exclusive": padding is None}
        place = self._op("CUMSUM", real, self._whole(1), shape=(1, -1), **kind)
        if padding is not None:
            place = self.add(self.times(place, real), self._whole(padding))
        return self._gathered(self.file.array(weights.name, weights.weight), place)

    def _gathered(self, table: Value, places: Value) -> Value:
        shape = (*places.shape, *table.shape[1:])
        return self._op("GATHER", table, places, shape=shape, options="GatherOptions", axis=0)

    def first(self, x: Value) -> Value:
        width = x.shape[-1]
        begin, size = self._whole(0, 0, 0), self._whole(1, 1, width)
        found = self._op("SLICE", x, begin, size, shape=(1, 1, width), options="SliceOptions")
        return self._shaped(found, 1, width)

    def split(self, x: Value, sizes: Sequence[int]) -> list[Value]:
        found, start = [], 0
        for size in sizes:
            begin, end = self._whole(0, 0, start), self._whole(1, -1, size)
            found.append(
                self._op("SLICE", x, begin, end, shape=(1, -1, size), options="SliceOptions")
            )
            start += size
        return found

    def multiply(self, x: Value, weights: Coded | Dense) -> Value:
        found = self._linear(x, self._matrix(weights), isinstance(weights, Coded))
        signs = self._signs(weights)
        if signs is not None:
            found = self.times(found, signs)
        if weights.bias is None:
            return found
        return self.add(found, self.file.array(f"{weights.name}.bias", weights.bias))

    def _linear(self, x: Value, matrix: Value, rounded: bool) -> Value:
        shape = (*x.shape[:-1], matrix.shape[0])
        return self._op(
            "FULLY_CONNECTED",
            *(x, matrix),
            shape=shape,
            options="FullyConnectedOptions",
            keepNumDims=True,
            asymmetricQuantizeInputs=rounded,
        )

    def add(self, x: Value, y: Value) -> Value:
        return self._op("ADD", x, y, shape=_shape(x, y), options="AddOptions")

    def times(self, x: Value, y: Value) -> Value:
        return self._op("MUL", x, y, shape=_shape(x, y), options="MulOptions")

    def scaled(self, x: Value, factor: float) -> Value:
        return self.times(x, self.file.constant([factor]))

    def function(self, x: Value, function: Function) -> Value:
        if function == "silu":
            return self.times(x, self._op("LOGISTIC", x, shape=x.shape))
        if function in ("gelu", "gelu_tanh"):
            rough = function == "gelu_tanh"
            return self._op("GELU", x, shape=x.shape, options="GeluOptions", approximate=rough)
        return self._op({"relu": "RELU", "tanh": "TANH"}[function], x, shape=x.shape)

    def _mean(self, x: Value) -> Value:
        kind = {"options": "ReducerOptions", "keepDims": True}
        return self._op("MEAN", x, self._whole(len(x.shape) - 1), shape=(*x.shape[:-1], 1), **kind)

    def norm(self, x: Value, norm: Norm) -> Value:
        if norm.centered:
            x = self._op("SUB", x, self._mean(x), shape=x.shape, options="SubOptions")
        power = self.add(self._mean(self.times(x, x)), self.file.constant([norm.epsilon]))
        found = self.times(x, self._op("RSQRT", power, shape=power.shape))
        found = self.times(found, self.file.array(f"{norm.name}.gain", norm.gain))
        if norm.bias is None:
            return found
        return self.add(found, self.file.array(f"{norm.name}.bias", norm.bias))

    def norm_heads(self, x: Value, norm: Norm, heads: int) -> Value:
        size = len(norm.gain)
        split = self._shaped(x, -1, heads, size)
        return self._shaped(self.norm(split, norm), 1, -1, heads * size)

    def _shaped(self, x: Value, *shape: int) -> Value:
        return self._op("RESHAPE", x, self._whole(*shape), shape=shape)

    def _turned(self, x: Value, *order: int) -> Value:
        shape = tuple(x.shape[axis] for axis in order)
        return self._op("TRANSPOSE", x, self._whole(*order), shape=shape)

    def _by_head(self, x: Value, size: int, *counts: int) -> Value:
        """[1, length, width] as [*counts, length, size]."""
        count = int(np.prod(counts))
        found = self._turned(self._shaped(x, -1, count, size), 1, 0, 2)
        return found if len(counts) == 1 else self._shaped(found, *counts, -1, size)

    def _product(self, x: Value, y: Value, across: bool) -> Value:
        """Of matrices, the second one turned where it is `across`."""
        shape = (*x.shape[:-1], y.shape[-2 if across else -1])
        kind = {"options": "BatchMatMulOptions", "adjY": across}
        return self._op("BATCH_MATMUL", x, y, shape=shape, **kind)

    def _softmax(self, x: Value) -> Value:
        return self._op("SOFTMAX", x, shape=x.shape, options="SoftmaxOptions", beta=1.0)

    def attend(self, qkv: Sequence[Value], heads: Heads) -> Value:
        q, k, v = (self._by_head(x, heads.size, heads.queries) for x in qkv)
        if "hidden" not in self._kept:
            equal = self._op("EQUAL", self._given, self._whole(0), shape=(1, -1), dtype="bool")
            self._kept["hidden"] = self._added(equal)
        scores = self._product(self.scaled(q, heads.scale), k, across=True)
        shares = self._softmax(self.add(scores, self._kept["hidden"]))
        found = self._turned(self._product(shares, v, across=False), 1, 0, 2)
        return self._shaped(found, 1, -1, heads.queries * heads.size)

    def _added(self, hidden: Value) -> Value:
        number = self._op("CAST", hidden, shape=hidden.shape, dtype="float32")
        return self.scaled(number, _HIDDEN)

    def attend_before(
        self, qkv: Sequence[Value], layer: int, heads: Heads, rotary: Rotary | None
    ) -> Value:
        q = self._by_head(qkv[0], heads.size, heads.queries)
        k, v = (self._by_head(x, heads.size, heads.keys) for x in qkv[1:])
        if rotary is not None:
            q, k = self._rotated(q, rotary, heads.size), self._rotated(k, rotary, heads.size)
        kept = (heads.keys, 1, self.context, heads.size)
        k, v = (
            self._shaped(self._with_past(x, heads, f"{layer}.{kind}"), *kept)
            for x, kind in ((k, "key"), (v, "value"))
        )
        repeat = heads.queries // heads.keys
        q = self._shaped(self.scaled(q, heads.scale), heads.keys, repeat, -1, heads.size)
        scores = self._product(q, k, across=True)
        if heads.cap:
            scores = self.function(self.scaled(scores, 1 / heads.cap), "tanh")
            scores = self.scaled(scores, heads.cap)
        shares = self._softmax(self.add(scores, self._later(heads.window)))
        found = self._shaped(self._product(shares, v, across=False), heads.queries, -1, heads.size)
        return self._shaped(self._turned(found, 1, 0, 2), 1, -1, heads.queries * heads.size)

    def _with_past(self, x: Value, heads: Heads, name: str) -> Value:
        """Keys or values of earlier calls, with these in their places."""
        shape = (heads.keys, self.context, heads.size)
        past = self.file.input(f"past.{name}", shape, "float32")
        if "start" not in self._kept:
            one = self._op(
                "SLICE",
                *(self._given, self._whole(0), self._whole(1)),
                shape=(1,),
                options="SliceOptions",
            )
            none = self._whole(0)
            self._kept["start"] = self._op(
                "CONCATENATION", none, one, none, shape=(3,), options="ConcatenationOptions", axis=0
            )
        found = self._op("DYNAMIC_UPDATE_SLICE", past, x, self._kept["start"], shape=shape)
        self._presents.append((found, f"present.{name}"))
        return found

    def _rotated(self, x: Value, rotary: Rotary, size: int) -> Value:
        """Turned by the angles of their positions; [heads, length, size]."""
        if rotary.name not in self._kept:
            tables = {"cosines": rotary.cosines, "sines": rotary.sines}
            self._kept[rotary.name] = [
                self._gathered(self.file.array(f"{name}.{rotary.name}", _twice(table)), self._given)
                for name, table in tables.items()
            ]
        cosines, sines = self._kept[rotary.name]
        half = np.eye(size // 2, dtype=np.float32)
        none = np.zeros_like(half)
        turn = self.file.array(f"turn.{size}", np.block([[none, -half], [half, none]]))
        turned = self._linear(x, turn, rounded=False)
        return self.add(self.times(x, cosines), self.times(turned, sines))

    def _later(self, window: int | None) -> Value:
        """What is added to scores, [length, context]: of keys that come later, or too early."""
        key = ("later", window)
        if key not in self._kept:
            keys = self.file.array("keys", np.arange(self.context, dtype=np.int32)[None])
            asked, shape = self._shaped(self._given, -1, 1), (-1, self.context)
            hidden = self._op("GREATER", keys, asked, shape=shape, dtype="bool")
            if window is not None:
                far = self._op("SUB", asked, self._whole(window), shape=asked.shape)
                early = self._op("LESS_EQUAL", keys, far, shape=shape, dtype="bool")
                hidden = self._op("LOGICAL_OR", hidden, early, shape=shape)
            self._kept[key] = self._added(hidden)
        return self._kept[key]

    def result(self, x: Value, name: str, shape: Sequence[int | str]) -> None:
        self.file.output(x, name)
        for value, present in self._presents:
            self.file.output(value, present)


def _twice(table: Any) -> Any:
    return np.concatenate((table, table), -1)


def _shape(x: Value, y: Value) -> Shape:
    """Of the sum of two, the smaller one repeated."""
    rank = max(len(x.shape), len(y.shape))
    one, other = ((1,) * (rank - len(value.shape)) + value.shape for value in (x, y))
    return tuple(b if a == 1 else a for a, b in zip(one, other, strict=True))
