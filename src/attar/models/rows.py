"""Several texts that a decoder continues together: they come, grow and leave by themselves.

A new text is read alone, in pieces, into a cache of its own. From its first written token on it is
a row of one batch. Rows end at the same column, so a shorter one begins further right, and
what lies left of it is masked: every row is computed as it would be alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from attar.models.model import Model

_FEWEST = 256  # columns of a cache that was just made; it doubles when it is full
_KEPT = 1024  # columns of an empty cache that are kept for the next texts


class Rows:
    """The rows of one decoder. Not to be used from two threads at once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._table = _Table()
        self._order: list[int] = []  # names of the rows in the table, as they lie there
        self._lengths: list[int] = []
        self._reading: dict[int, DynamicCache] = {}

    def extend(self, given: Mapping[int, Sequence[int]]) -> dict[int, NDArray[np.float32]]:
        """Append tokens to rows; logits [vocabulary] of the token after, by row.

        A name that was not seen before begins a row. While a row is given several tokens at once
        it is read alone; from the first time that it is given one it must be given one in
        every call that gives any row one, until it is dropped.
        """
        with torch.no_grad():
            written = {row: ids[0] for row, ids in given.items() if self._writes(row, ids)}
            logits = {row: self._read(row, ids) for row, ids in given.items() if row not in written}
            for row in written:
                if row in self._reading:
                    self._join(row)
            return {**logits, **self._write(written)} if written else logits

    def drop(self, row: int) -> None:
        """Forget a row; another takes its place."""
        self._reading.pop(row, None)
        if row not in self._order:
            return
        index, last = self._order.index(row), len(self._order) - 1
        if index != last:
            self._table.move(last, index)
            self._order[index], self._lengths[index] = self._order[last], self._lengths[last]
        self._order.pop()
        self._lengths.pop()
        self._table.fit(len(self._order), max(self._lengths, default=0))

    def clear(self) -> None:
        """Forget every row, whatever state an error left them in."""
        self._table, self._order, self._lengths, self._reading = _Table(), [], [], {}

    def _writes(self, row: int, ids: Sequence[int]) -> bool:
        return len(ids) == 1 and (row in self._reading or row in self._order)

    def _read(self, row: int, ids: Sequence[int]) -> NDArray[np.float32]:
        cache = self._reading.setdefault(row, DynamicCache())
        return self._logits(input_ids=self._ids([ids]), past_key_values=cache)[0]

    def _join(self, row: int) -> None:
        cache = self._reading.pop(row)
        length = cache.get_seq_length()
        self._table.join(cache, length)
        self._order.append(row)
        self._lengths.append(length)

    def _write(self, written: Mapping[int, int]) -> dict[int, NDArray[np.float32]]:
        table = self._table
        table.make_room(len(self._order), 0)
        lengths = torch.tensor(self._lengths, device=self._model.device)
        columns = torch.arange(table.start, table.end + 1, device=self._model.device)
        logits = self._logits(
            input_ids=self._ids([[written[row]] for row in self._order]),
            attention_mask=(columns >= table.end - lengths[:, None]).long(),
            position_ids=lengths[:, None],
            past_key_values=table.cache,
        )
        table.end += 1
        self._lengths = [length + 1 for length in self._lengths]
        return dict(zip(self._order, logits, strict=True))

    def _ids(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([list(row) for row in rows], device=self._model.device)

    def _logits(self, **given: Any) -> NDArray[np.float32]:
        answer = self._model.module(**given, use_cache=True, logits_to_keep=1)
        return answer.logits[:, -1].float().cpu().numpy()


class _Table:
    """Keys and values of all rows: columns `start` to `end` are in use, in every layer alike."""

    def __init__(self) -> None:
        self.rows = self.start = self.end = 0
        self.cache: Any = None

    def join(self, cache: DynamicCache, length: int) -> None:
        """Add a row that was read alone, with its last token in the last column."""
        if self.cache is None:
            layer: Any = partial(_Layer, self)
            self.cache = Cache(layers=[layer() for _ in cache.layers])
        self.make_room(self.rows + 1, length)
        if length > self.end:
            self._shift(length - self.end)
        begin = self.end - length
        read: Any = cache.layers
        for ours, theirs in zip(self.cache.layers, read, strict=True):
            ours.put(self.rows, begin, theirs.keys, theirs.values)
        self.start = min(self.start, begin) if self.rows else begin
        self.rows += 1

    def move(self, source: int, target: int) -> None:
        """Let a row take another's place."""
        for layer in self.cache.layers:
            for tensor in layer.tensors():
                tensor[target, :, self.start : self.end] = tensor[source, :, self.start : self.end]

    def fit(self, rows: int, longest: int) -> None:
        """Keep what the rows left over need."""
        self.rows, self.start = rows, self.end - longest
        if rows == 0:
            self.start = self.end = 0
            if self.cache is not None and self.cache.layers[0].columns > _KEPT:
                self.cache = None

    def make_room(self, rows: int, length: int) -> None:
        """Have room for so many rows, and a column after those of a text of this length.

        What lies far to the right is moved to the left before anything grows.
        """
        have = self.cache.layers[0].columns
        if max(self.end, length) >= have > 0 and self.start >= have // 2:
            self._shift(-self.start)
        for layer in self.cache.layers:
            layer.reserve(rows, max(self.end, length) + 1)

    def _shift(self, columns: int) -> None:
        for layer in self.cache.layers:
            layer.slide(self.start, self.end, columns)
        self.start, self.end = self.start + columns, self.end + columns


class _Layer(CacheLayerMixin):
    """One layer of the table: [rows, heads, columns, width], made at its first row."""

    is_sliding = False  # a window is kept by the mask

    def __init__(self, table: _Table) -> None:
        super().__init__()
        self._table = table
        self._wanted = (1, _FEWEST)

    @property
    def columns(self) -> int:
        """Columns that there is room for."""
        return 0 if self.keys is None else self.keys.shape[2]

    def tensors(self) -> tuple[Any, Any]:
        """Keys and values."""
        return self.keys, self.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        (rows, columns), heads = self._wanted, key_states.shape[1]
        self.keys = key_states.new_zeros(rows, heads, columns, key_states.shape[3])
        self.values = value_states.new_zeros(rows, heads, columns, value_states.shape[3])
        self.is_initialized = True

    def reserve(self, rows: int, columns: int) -> None:
        """Grow by doubling until both fit."""
        have = self._wanted
        self._wanted = _doubled(have[0], rows), _doubled(have[1], columns)
        if self.keys is None or self._wanted == have:
            return
        self.keys, self.values = (self._grown(tensor) for tensor in self.tensors())

    def _grown(self, old: Tensor) -> Tensor:
        new = old.new_zeros(self._wanted[0], old.shape[1], self._wanted[1], old.shape[3])
        new[: old.shape[0], :, : old.shape[2]] = old
        return new

    def put(self, row: int, column: int, keys: Tensor, values: Tensor) -> None:
        """Write one text's keys and values [1, heads, length, width] into a row."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        for ours, theirs in zip(self.tensors(), (keys, values), strict=True):
            ours[row, :, :column] = 0  # what is masked still counts where another text left a NaN
            ours[row, :, column : column + theirs.shape[2]] = theirs[0]

    def slide(self, start: int, end: int, columns: int) -> None:
        """Move what lies in these columns to the right, or to the left where it is negative."""
        for tensor in self.tensors():
            if tensor is not None and end > start:
                kept = tensor[:, :, start:end].clone()
                tensor[:, :, start + columns : end + columns] = kept

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the newest column, and hand out all columns in use."""
        keys, values = self.tensors()
        table, after = self._table, self._table.end + key_states.shape[2]
        keys[: table.rows, :, table.end : after] = key_states
        values[: table.rows, :, table.end : after] = value_states
        used = slice(table.start, after)
        return keys[: table.rows, :, used], values[: table.rows, :, used]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self._table.end - self._table.start

    def get_max_length(self) -> int:
        return -1


def _doubled(have: int, wanted: int) -> int:
    while have < wanted:
        have *= 2
    return have
