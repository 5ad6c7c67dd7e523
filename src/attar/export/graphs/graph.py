"""The operations that architectures are written with, whatever the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from attar.export.graphs.weights import Coded, Dense, Floats, outputs_of, weights_of
from attar.layers import (
    LowRank,
    LowRankResidual,
    QuantizedEmbedding,
    QuantizedLinear,
    Resized,
    SharedBlocks,
    TiedHead,
)
from attar.models import Model
from attar.ops.activations import InputGrid

# Modules of Attar's own that graphs are written of: blocks that share weights have a copy each.
HELD = (QuantizedLinear, QuantizedEmbedding, TiedHead, LowRank, Resized, SharedBlocks)
V = TypeVar("V")  # what the engine's format calls a value
Function = Literal["silu", "gelu", "gelu_tanh", "relu", "tanh"]


@dataclass(frozen=True)
class Norm:
    """A norm over the last axis; its mean is taken off first where it is `centered`."""

    name: str
    gain: Floats
    bias: Floats | None
    epsilon: float
    centered: bool


@dataclass(frozen=True)
class Heads:
    """How an attention splits and weighs: heads of queries and of keys, and the size of one.

    `window`: how many tokens back, itself included, a token sees; `cap`: of the scores.
    """

    queries: int
    keys: int
    size: int
    scale: float
    window: int | None = None
    cap: float | None = None


@dataclass(frozen=True)
class Rotary:
    """Angles of rotary positions: cosines and sines, [positions, size / 2]."""

    name: str
    cosines: Floats
    sines: Floats


class Graph(ABC, Generic[V]):
    """A graph that is being written, operation by operation.

    Values of the model's width are [rows, length, width]. A graph takes token ids and a mask,
    [rows, length]; a decoder's also takes and gives keys and values.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def linear(self, x: V, name: str) -> V:
        """The outputs of the linear called `name`, in factors or not."""
        module: Any = self.model.module.get_submodule(name)
        if not isinstance(module, LowRank):
            return self.put_out(name, self.multiply(x, weights_of(self.model, name)))
        found = self.linear(self.linear(x, f"{name}.down"), f"{name}.up")
        if isinstance(module, LowRankResidual):
            found = self.add(found, self.linear(x, f"{name}.rest"))
        return found

    def linears(self, x: V, names: Sequence[str]) -> list[V]:
        """The outputs of several that share their inputs."""
        return [self.linear(x, name) for name in names]

    def put_out(self, name: str, x: V) -> V:
        """What a linear makes, on the grid that it has for that, if any."""
        grid = outputs_of(self.model, name)
        return x if grid is None else self.rounded(x, grid)

    def rounded(self, x: V, grid: InputGrid) -> V:
        """The nearest of a grid's 256 numbers."""
        raise NotImplementedError

    def split(self, x: V, sizes: Sequence[int]) -> list[V]:
        """Runs of the last axis, of these sizes."""
        raise NotImplementedError

    @abstractmethod
    def ids(self) -> V:
        """The token ids."""

    @abstractmethod
    def embed(self, ids: V, weights: Coded | Dense) -> V:
        """Rows of a table."""

    @abstractmethod
    def places(self, weights: Dense, padding: int | None) -> V:
        """Rows of a table by position: the first ones, [length, width].

        With `padding`, a token id, those after its row, that token not counted: [rows, length,
        width].
        """

    @abstractmethod
    def first(self, x: V) -> V:
        """Of the first token of each row: [rows, width]."""

    @abstractmethod
    def multiply(self, x: V, weights: Coded | Dense) -> V:
        """A linear, its bias included."""

    @abstractmethod
    def add(self, x: V, y: V) -> V:
        """The sum."""

    @abstractmethod
    def times(self, x: V, y: V) -> V:
        """The product, number by number."""

    @abstractmethod
    def scaled(self, x: V, factor: float) -> V:
        """The product with a number."""

    @abstractmethod
    def function(self, x: V, function: Function) -> V:
        """A function of each number."""

    @abstractmethod
    def norm(self, x: V, norm: Norm) -> V:
        """Normalized over the last axis."""

    def add_norm(self, x: V, branch: V, norm: Norm) -> tuple[V, V]:
        """The sum of the two normalized, and the sum."""
        total = self.add(x, branch)
        return self.norm(total, norm), total

    @abstractmethod
    def norm_heads(self, x: V, norm: Norm, heads: int) -> V:
        """Normalized over each head by itself."""

    @abstractmethod
    def attend(self, qkv: Sequence[V], heads: Heads) -> V:
        """Every token sees all that the mask shows."""

    @abstractmethod
    def attend_before(self, qkv: Sequence[V], layer: int, heads: Heads, rotary: Rotary | None) -> V:
        """Every token sees itself and those before, those of earlier calls too."""

    @abstractmethod
    def result(self, x: V, name: str, shape: Sequence[int | str]) -> None:
        """Make this an output; words in its shape are sizes that vary."""
