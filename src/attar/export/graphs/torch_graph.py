"""The operations as ATen's, in a program that PyTorch exports: of one row of tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from attar.export.graphs.graph import Function, Graph, Heads, Norm, Rotary
from attar.export.graphs.weights import Coded, Dense
from attar.models import Model

Node = fx.Node
_HIDDEN = -1e30  # added to the scores of keys that must not be seen
_AT_ONCE = 128  # tokens of a decoder's text


class TorchGraph(Graph[Node]):
    """A model as a program of one row: `input_ids` and `attention_mask`, [1, length].

    A decoder's takes `input_ids` and `positions`, [length], and keeps keys and values of `context`
    tokens in buffers of its own. Every use of a number has a buffer of its own, since a backend
    takes those only whose uses are all its own. Sums over the last axis, and rotated halves, are
    linears: those are what backends take whatever the length.
    """

    def __init__(self, model: Model, context: int) -> None:
        super().__init__(model)
        self.context = context
        # tokens that one call takes
        self.at_once = min(_AT_ONCE, context) if model.task == "causal-lm" else context
        self._root, self._graph = nn.Module(), fx.Graph()
        self._aten = torch.ops.aten
        self._ids = self._graph.placeholder("input_ids")
        self._decoder = model.task == "causal-lm"
        self._given = self._graph.placeholder("positions" if self._decoder else "attention_mask")
        self._kept: dict[Any, Any] = {}
        self._count = 0
        self.notes: list[dict[str, Any]] = []

    def exported(self) -> torch.export.ExportedProgram:
        """The program, whose length may vary."""
        module = fx.GraphModule(self._root, self._graph).eval()
        length = torch.export.Dim("length", min=1, max=self.at_once)
        ids = torch.zeros(1, max(2, self.at_once // 2), dtype=torch.long)
        given = torch.arange(ids.shape[1]) if self._decoder else torch.ones_like(ids)
        shapes = ({1: length}, {0: length} if self._decoder else {1: length})
        with torch.no_grad():
            return torch.export.export(module, (ids, given), dynamic_shapes=shapes)

    def op(self, op: Any, *inputs: Any) -> Node:
        """Add a call."""
        return self._graph.call_function(op, inputs)

    def constant(self, value: Any) -> Node:
        """Numbers that the program keeps."""
        name = f"constant_{self._count}"
        self._count += 1
        tensor = torch.from_numpy(np.array(value)) if not torch.is_tensor(value) else value
        self._root.register_buffer(name, tensor)
        return self._graph.get_attr(name)

    def number(self, value: float) -> Node:
        """One number."""
        return self.constant(np.array([value], np.float32))

    def ids(self) -> Node:
        return self._ids

    def embed(self, ids: Node, weights: Coded | Dense) -> Node:
        if isinstance(weights, Dense):
            table = self.constant(weights.weight)
            return self.op(self._aten.embedding.default, table, ids)
        return self.embed_coded(ids, weights)

    @abstractmethod
    def embed_coded(self, ids: Node, weights: Coded) -> Node:
        """Rows of a table on a grid."""

    @abstractmethod
    def multiply_coded(self, x: Node, weights: Coded) -> Node:
        """A linear on a grid, its bias left out."""

    def places(self, weights: Dense, padding: int | None) -> Node:
        op, aten = self.op, self._aten
        table = self.constant(weights.weight)
        if padding is None:
            length = op(aten.sym_size.int, self._ids, 1)
            return op(aten.slice.Tensor, table, 0, 0, length)
        real = op(aten._to_copy.default, op(aten.ne.Scalar, self._ids, padding))
        real.kwargs = {"dtype": torch.long}
        place = op(aten.mul.Tensor, op(aten.cumsum.default, real, 1), real)
        return op(aten.embedding.default, table, op(aten.add.Tensor, place, padding))

    def first(self, x: Node) -> Node:
        return self.op(self._aten.select.int, x, 1, 0)

    def split(self, x: Node, sizes: Sequence[int]) -> list[Node]:
        ends = np.cumsum(sizes).tolist()
        return [
            self.op(self._aten.slice.Tensor, x, 2, end - size, end)
            for size, end in zip(sizes, ends, strict=True)
        ]

    def multiply(self, x: Node, weights: Coded | Dense) -> Node:
        bias = None if weights.bias is None else self.constant(weights.bias)
        if isinstance(weights, Dense):
            return self.op(self._aten.linear.default, x, self.constant(weights.weight), bias)
        found = self.multiply_coded(x, weights)
        return found if bias is None else self.add(found, bias)

    def add(self, x: Node, y: Node) -> Node:
        return self.op(self._aten.add.Tensor, x, y)

    def times(self, x: Node, y: Node) -> Node:
        return self.op(self._aten.mul.Tensor, x, y)

    def scaled(self, x: Node, factor: float) -> Node:
        return self.times(x, self.number(factor))

    def function(self, x: Node, function: Function) -> Node:
        aten = self._aten
        if function == "silu":
            return self.times(x, self.op(aten.sigmoid.default, x))
        if function in ("gelu", "gelu_tanh"):
            found = self.op(aten.gelu.default, x)
            found.kwargs = {"approximate": "tanh" if function == "gelu_tanh" else "none"}
            return found
        return self.op({"relu": aten.relu.default, "tanh": aten.tanh.default}[function], x)

    def _mean(self, x: Node, width: int) -> Node:
        """Over the last axis, which stays with one number."""
        share = np.full((1, width), 1 / width, np.float32)
        return self.op(self._aten.linear.default, x, self.constant(share))

    def norm(self, x: Node, norm: Norm) -> Node:
        width = len(norm.gain)
        if norm.centered:
            x = self.op(self._aten.sub.Tensor, x, self._mean(x, width))
        power = self.add(self._mean(self.times(x, x), width), self.number(norm.epsilon))
        found = self.times(x, self.op(self._aten.rsqrt.default, power))
        found = self.times(found, self.constant(norm.gain))
        return found if norm.bias is None else self.add(found, self.constant(norm.bias))

    def norm_heads(self, x: Node, norm: Norm, heads: int) -> Node:
        size = len(norm.gain)
        split = self._shaped(x, 1, -1, heads, size)
        return self._shaped(self.norm(split, norm), 1, -1, heads * size)

    def _shaped(self, x: Node, *shape: int) -> Node:
        return self.op(self._aten.view.default, x, list(shape))

    def _turned(self, x: Node, *order: int) -> Node:
        found = self.op(self._aten.clone.default, self.op(self._aten.permute.default, x, order))
        found.kwargs = {"memory_format": torch.contiguous_format}
        return found

    def _by_head(self, x: Node, heads: Heads, count: int) -> Node:
        """[1, length, width] as [count, length, size]."""
        return self._turned(self._shaped(x, -1, count, heads.size), 1, 0, 2)

    def attend(self, qkv: Sequence[Node], heads: Heads) -> Node:
        q, k, v = (self._by_head(x, heads, heads.queries) for x in qkv)
        hidden = self._once("hidden", self._masked)
        product = self.op(self._aten.bmm.default, self.scaled(q, heads.scale), self._across(k))
        shares = self.op(self._aten._softmax.default, self.add(product, hidden), -1, False)
        found = self._turned(self.op(self._aten.bmm.default, shares, v), 1, 0, 2)
        return self._shaped(found, 1, -1, heads.queries * heads.size)

    def _across(self, x: Node) -> Node:
        return self._turned(x, 0, 2, 1)

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _masked(self) -> Node:
        """What is added to scores: [1, length]."""
        return self._added(self.op(self._aten.eq.Scalar, self._given, 0))

    def _added(self, hidden: Node) -> Node:
        number = self.op(self._aten._to_copy.default, hidden)
        number.kwargs = {"dtype": torch.float32}
        return self.scaled(number, _HIDDEN)

    def attend_before(
        self, qkv: Sequence[Node], layer: int, heads: Heads, rotary: Rotary | None
    ) -> Node:
        q = self._by_head(qkv[0], heads, heads.queries)
        k, v = (self._by_head(x, heads, heads.keys) for x in qkv[1:])
        if rotary is not None:
            q, k = self._rotated(q, rotary, heads.size), self._rotated(k, rotary, heads.size)
        k, v = self._kept_with(k, heads), self._kept_with(v, heads)
        repeat = heads.queries // heads.keys
        q = self._shaped(self.scaled(q, heads.scale), heads.keys, -1, heads.size)
        scores = self._across(self.op(self._aten.bmm.default, k, self._across(q)))
        if heads.cap:
            scores = self.function(self.scaled(scores, 1 / heads.cap), "tanh")
            scores = self.scaled(scores, heads.cap)
        scores = self._shaped(scores, heads.keys, repeat, -1, self.context)
        hidden = self._once(("later", heads.window), lambda: self._later(heads.window))
        shares = self.op(self._aten._softmax.default, self.add(scores, hidden), -1, False)
        shares = self._shaped(shares, heads.keys, -1, self.context)
        found = self.op(self._aten.bmm.default, shares, v)
        found = self._turned(self._shaped(found, heads.keys, repeat, -1, heads.size), 2, 0, 1, 3)
        return self._shaped(found, 1, -1, heads.queries * heads.size)

    def _kept_with(self, x: Node, heads: Heads) -> Node:
        """Those of earlier calls with these in their places: [heads, context, size]."""
        cache = self.constant(np.zeros((heads.keys, self.context, heads.size), np.float32))
        return self.op(self._aten.index_put_.default, cache, [None, self._given], x)

    def _rotated(self, x: Node, rotary: Rotary, size: int) -> Node:
        """Turned by the angles of their positions; [heads, length, size]."""
        cosines, sines = self._once(("angles", rotary.name), lambda: self._angles(rotary))
        half = np.eye(size // 2, dtype=np.float32)
        none = np.zeros_like(half)
        turn = np.block([[none, -half], [half, none]])
        turned = self.op(self._aten.linear.default, x, self.constant(turn))
        return self.add(self.times(x, cosines), self.times(turned, sines))

    def _angles(self, rotary: Rotary) -> tuple[Node, Node]:
        """Cosines and sines of the positions, [length, size]."""
        tables = [rotary.cosines[: self.context], rotary.sines[: self.context]]
        both = [self.constant(np.concatenate((table, table), -1)) for table in tables]
        cosines, sines = (
            self.op(self._aten.index_select.default, table, 0, self._given) for table in both
        )
        return cosines, sines

    def _later(self, window: int | None) -> Node:
        """What is added to scores, [length, context]: of keys that come later, or too early."""
        op, aten = self.op, self._aten
        keys = self.constant(np.arange(self.context))
        asked = op(aten.unsqueeze.default, self._given, 1)
        hidden = op(aten.gt.Tensor, keys, asked)
        if window is not None:
            early = op(aten.le.Tensor, keys, op(aten.sub.Scalar, asked, window))
            hidden = op(aten.logical_or.default, hidden, early)
        return self._added(hidden)

    def result(self, x: Node, name: str, shape: Sequence[int | str]) -> None:
        self._graph.output(x)
