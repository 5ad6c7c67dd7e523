"""The operations in OpenVINO's opset, in the shapes that its plugins fuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from attar.export.graphs.graph import Function, Graph, Heads, Norm, Rotary
from attar.export.graphs.openvino_weights import Node, OpenvinoWeights
from attar.export.graphs.weights import Coded, Dense
from attar.models import Model
from attar.ops.activations import InputGrid

_HIDDEN = float(np.finfo(np.float32).min)  # a score that softmax makes 0


class OpenvinoGraph(Graph[Node]):
    """A model in OpenVINO; a decoder's with its keys and values as states."""

    def __init__(self, model: Model) -> None:
        import openvino
        from openvino import opset15

        super().__init__(model)
        self._openvino, self._ops = openvino, opset15
        self._weights = OpenvinoWeights()
        names = ["input_ids", "attention_mask"]
        if model.task == "causal-lm":
            names.append("position_ids")
        self._inputs: dict[str, Node] = {name: self._input(name, [-1, -1]) for name in names}
        if model.task == "causal-lm":
            self._inputs["beam_idx"] = self._input("beam_idx", [-1], np.int32)
        self._results: list[Node] = []
        self._written: list[Node] = []  # to states
        self._kept: dict[Any, Any] = {}  # what several operations share
        self._halves: dict[str, Callable[[], Node]] = {}  # of what norms put out

    def _input(self, name: str, shape: list[int], dtype: Any = np.int64) -> Node:
        found = self._ops.parameter(shape, dtype, name=name)
        found.output(0).get_tensor().set_names({name})
        return found

    def _number(self, value: Any, dtype: Any = np.int64) -> Node:
        return self._ops.constant(np.array(value, dtype))

    def built(self) -> Any:
        """The whole model."""
        inputs = list(self._inputs.values())
        return self._openvino.Model(self._results, self._written, inputs, "attar")

    def ids(self) -> Node:
        return self._inputs["input_ids"]

    def embed(self, ids: Node, weights: Coded | Dense) -> Node:
        return self._ops.gather(self._weights.matrix(weights), ids, self._number(0))

    def places(self, weights: Dense, padding: int | None) -> Node:
        ops, number, ids = self._ops, self._number, self.ids()
        table = self._weights.floats(weights.name, weights.weight)
        if padding is None:
            end = ops.slice(ops.shape_of(ids), number([1]), number([2]), number([1]))
            return ops.slice(table, number([0]), end, number([1]), number([0]))
        real = ops.convert(ops.not_equal(ids, number(padding)), np.int64)
        place = ops.multiply(ops.cum_sum(real, number(1)), real)
        return ops.gather(table, ops.add(place, number(padding)), number(0))

    def first(self, x: Node) -> Node:
        return self._ops.gather(x, self._number(0), self._number(1))

    def multiply(self, x: Node, weights: Coded | Dense) -> Node:
        if isinstance(weights, Coded) and weights.given is not None:
            x = self.rounded(x, weights.given)
        found = self._ops.matmul(x, self._weights.matrix(weights), False, True)
        if weights.bias is not None:
            rank = found.get_output_partial_shape(0).rank.get_length()
            bias = weights.bias.reshape([1] * (rank - 1) + [-1])
            found = self._ops.add(found, self._ops.constant(bias))
        return found

    def rounded(self, x: Node, grid: InputGrid) -> Node:
        """The nearest of a grid's numbers, found where the plugin joins it with what was before."""
        key = (x.get_friendly_name(), grid)
        if key not in self._kept:
            half, rounded = self._halves.get(key[0]), self._weights.rounded
            self._kept[key] = rounded(x, grid) if half is None else rounded(half(), grid, 0.5)
        return self._kept[key]

    def split(self, x: Node, sizes: Sequence[int]) -> list[Node]:
        return self._ops.variadic_split(x, self._number(-1), self._number(list(sizes))).outputs()

    def add(self, x: Node, y: Node) -> Node:
        return self._ops.add(x, y)

    def times(self, x: Node, y: Node) -> Node:
        return self._ops.multiply(x, y)

    def scaled(self, x: Node, factor: float) -> Node:
        return self._ops.multiply(x, self._number(factor, np.float32))

    def function(self, x: Node, function: Function) -> Node:
        ops = self._ops
        if function in ("gelu", "gelu_tanh"):
            return ops.gelu(x, "erf" if function == "gelu" else "tanh")
        return {"silu": ops.swish, "relu": ops.relu, "tanh": ops.tanh}[function](x)

    def norm(self, x: Node, norm: Norm) -> Node:
        ops, number = self._ops, self._number
        if norm.centered:
            plain = ops.mvn(x, number([-1]), True, norm.epsilon, "INSIDE_SQRT")
            found, bias = self._affine(plain, norm), norm.bias
            # halved, which is exact: the plugin would make one of two that are equal
            half = replace(norm, gain=norm.gain / 2, bias=None if bias is None else bias / 2)
            self._halves[found.get_friendly_name()] = lambda: self._affine(plain, half)
            return found
        gain = ops.constant(norm.gain)
        squares = ops.power(x, number(2, np.float32))
        mean = ops.reduce_mean(squares, number([-1]), True)
        size = ops.sqrt(ops.add(mean, number(norm.epsilon, np.float32)))
        return ops.multiply(gain, ops.multiply(x, ops.divide(number(1, np.float32), size)))

    def _affine(self, plain: Node, norm: Norm) -> Node:
        found = self._ops.multiply(plain, self._ops.constant(norm.gain))
        return found if norm.bias is None else self._ops.add(found, self._ops.constant(norm.bias))

    def norm_heads(self, x: Node, norm: Norm, heads: int) -> Node:
        ops, number, size = self._ops, self._number, len(norm.gain)
        split = ops.reshape(x, number([0, 0, heads, size]), special_zero=True)
        return ops.reshape(self.norm(split, norm), number([0, 0, heads * size]), special_zero=True)

    def _heads(self, x: Node, heads: int, size: int) -> Node:
        """[rows, heads, length, size]."""
        ops, number = self._ops, self._number
        split = ops.reshape(x, number([0, 0, heads, size]), special_zero=True)
        return ops.transpose(split, number([0, 2, 1, 3]))

    def _joined(self, x: Node, width: int) -> Node:
        ops, number = self._ops, self._number
        swapped = ops.transpose(x, number([0, 2, 1, 3]))
        return ops.reshape(swapped, number([0, 0, width]), special_zero=True)

    def attend(self, qkv: Sequence[Node], heads: Heads) -> Node:
        q, k, v = (self._heads(x, heads.queries, heads.size) for x in qkv)
        scale = self._number(heads.scale, np.float32)
        found = self._ops.scaled_dot_product_attention(q, k, v, self._seen(), scale)
        return self._joined(found, heads.queries * heads.size)

    def _seen(self) -> Node:
        """What is added to scores where the mask alone hides keys, [rows, 1, 1, length]."""
        if "seen" not in self._kept:
            shown = self._shown()
            self._kept["seen"] = self._select(shown)
        return self._kept["seen"]

    def _shown(self) -> Node:
        ops, number = self._ops, self._number
        shown = ops.not_equal(self._inputs["attention_mask"], number(0))
        return ops.unsqueeze(shown, number([1, 2]))

    def _select(self, shown: Node) -> Node:
        return self._ops.select(
            shown, self._number(0, np.float32), self._number(_HIDDEN, np.float32)
        )

    def attend_before(
        self, qkv: Sequence[Node], layer: int, heads: Heads, rotary: Rotary | None
    ) -> Node:
        q = self._heads(qkv[0], heads.queries, heads.size)
        k, v = (self._heads(x, heads.keys, heads.size) for x in qkv[1:])
        if rotary is not None:
            angles = self._angles(rotary)
            q, k = (self._turned(x, angles, heads.size) for x in (q, k))
        k, v = (self._state(x, layer, kind, heads) for x, kind in ((k, "key"), (v, "value")))
        repeat = heads.queries // heads.keys
        if repeat > 1:
            k, v = (self._repeated(x, repeat, heads) for x in (k, v))
        scale = self._number(heads.scale, np.float32)
        mask = self._before(heads.window)
        found = self._ops.scaled_dot_product_attention(q, k, v, mask, scale)
        return self._joined(found, heads.queries * heads.size)

    def _angles(self, rotary: Rotary) -> tuple[Node, Node]:
        """Cosines and sines of the positions, [rows, 1, length, size]."""
        key = ("angles", rotary.name)
        if key not in self._kept:
            ops, number = self._ops, self._number
            found = []
            for table in (rotary.cosines, rotary.sines):
                whole = ops.constant(np.concatenate((table, table), -1))
                rows = ops.gather(whole, self._inputs["position_ids"], number(0))
                found.append(ops.unsqueeze(rows, number(1)))
            self._kept[key] = tuple(found)
        return self._kept[key]

    def _turned(self, x: Node, angles: tuple[Node, Node], size: int) -> Node:
        ops, number = self._ops, self._number
        half, end, step, axis = number([size // 2]), number([size]), number([1]), number([-1])
        upper = ops.slice(x, half, end, step, axis)
        lower = ops.slice(x, number([0]), half, step, axis)
        turned = ops.concat([ops.multiply(upper, number(-1, np.float32)), lower], -1)
        cosines, sines = angles
        return ops.add(ops.multiply(x, cosines), ops.multiply(turned, sines))

    def _state(self, x: Node, layer: int, kind: str, heads: Heads) -> Node:
        """Those of earlier calls, and these after them; written to a state for the next."""
        ops, number = self._ops, self._number
        name = f"past_key_values.{layer}.{kind}present.{layer}.{kind}"
        rows = ops.gather(ops.shape_of(self.ids()), number([0]), number(0))
        shape = ops.concat([rows, number([heads.keys]), number([0]), number([heads.size])], 0)
        empty = ops.broadcast(number(0, np.float32), shape)
        past = ops.read_value(
            empty,
            name,
            self._openvino.Type.f32,
            self._openvino.PartialShape([-1, heads.keys, -1, heads.size]),
        )
        kept = ops.gather(past, self._inputs["beam_idx"], number(0))
        grown = ops.concat([kept, x], 2)
        self._written.append(ops.assign(grown, name))
        return grown

    def _repeated(self, x: Node, repeat: int, heads: Heads) -> Node:
        """Each head of keys once for every query that shares it."""
        ops, number = self._ops, self._number
        lone = ops.unsqueeze(x, number(2))
        many = ops.broadcast(lone, number([1, 1, repeat, 1, 1]), broadcast_spec="BIDIRECTIONAL")
        shape = number([0, heads.queries, -1, heads.size])
        return ops.reshape(many, shape, special_zero=True)

    def _before(self, window: int | None) -> Node:
        """What is added to scores, [rows, 1, length, total]: later and masked keys are hidden."""
        key = ("before", window)
        if key not in self._kept:
            ops, number = self._ops, self._number
            total = ops.gather(ops.shape_of(self._inputs["attention_mask"]), number(1), number(0))
            length = ops.gather(ops.shape_of(self.ids()), number(1), number(0))
            keys = ops.range(number(0), total, number(1), "i64")
            queries = ops.range(ops.subtract(total, length), total, number(1), "i64")
            queries = ops.unsqueeze(queries, number(1))
            shown = ops.less_equal(keys, queries)
            if window is not None:
                near = ops.greater(keys, ops.subtract(queries, number(window)))
                shown = ops.logical_and(shown, near)
            shown = ops.logical_and(ops.unsqueeze(shown, number([0, 1])), self._shown())
            self._kept[key] = self._select(shown)
        return self._kept[key]

    def result(self, x: Node, name: str, shape: Sequence[int | str]) -> None:
        found = self._ops.result(x, name=name)
        found.output(0).get_tensor().set_names({name})
        self._results.append(found)
