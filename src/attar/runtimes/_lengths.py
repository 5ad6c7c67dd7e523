"""A padded batch in groups of about one length, so that little of the work is padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from attar.runtimes.runtime import Floats, Ids

Run = Callable[[Ids, Ids], Floats]  # ids and mask [rows, length] -> [rows, ...]
CALL = 64  # tokens that an engine could compute in the time that one more call costs


def groups(
    lengths: Sequence[int], rows: int | None = None, tokens: int | None = None
) -> list[list[int]]:
    """Which texts run together, by their places in `lengths`; the shortest first.

    Of all ways to part them, the one with the least work: a group computes its longest text as
    often as it has texts, and costs CALL tokens more for being called. Given alone, a group
    would not be parted again. None has more than so many `rows`, or more `tokens` with its
    padding, but for single texts.
    """
    order = np.argsort(lengths, kind="stable")
    sizes = np.asarray(lengths, np.int64)[order]
    work, begins = np.zeros(len(sizes) + 1, np.int64), np.zeros(len(sizes) + 1, np.int64)
    for end in range(1, len(sizes) + 1):
        longest = int(sizes[end - 1])
        most = end if rows is None else rows
        if tokens is not None:
            most = max(1, min(most, tokens // max(longest, 1)))
        starts = np.arange(max(0, end - most), end)
        costs = work[starts] + longest * (end - starts) + CALL
        best = int(costs.argmin())  # of equal ones the first: the largest group
        work[end], begins[end] = costs[best], starts[best]
    found: list[list[int]] = []
    end = len(sizes)
    while end:
        found.append(order[begins[end] : end].tolist())
        end = int(begins[end])
    return found[::-1]


def by_length(run: Run, ids: Ids, mask: Ids) -> Floats:
    """What `run` gives for a batch, computed in groups that have little padding.

    ids, mask: [rows, length], the mask 1 where a token is and 0 in the padding after it. Columns
    that are padding in every row of a group are cut off; where outputs have a length,
    [rows, length, width], there are zeros in their places. A batch that is padded on the left,
    or whose mask has holes or an empty row, is run as it is.
    """
    lengths = mask.sum(1)
    if not _ends_padded(mask, lengths):
        return run(ids, mask)
    parts = groups(lengths.tolist())
    if len(parts) == 1 and lengths.max() == ids.shape[1]:
        return run(ids, mask)
    found = [_cut(run, ids[part], mask[part], int(lengths[part].max())) for part in parts]
    return _together(parts, found, ids.shape)


def _ends_padded(mask: Ids, lengths: NDArray[np.int64]) -> bool:
    """Whether every row is some ones, and then only zeros."""
    wanted = np.arange(mask.shape[1]) < lengths[:, None]
    return bool(lengths.size and lengths.min() > 0 and (mask == wanted).all())


def _cut(run: Run, ids: Ids, mask: Ids, longest: int) -> Floats:
    return run(*(np.ascontiguousarray(each[:, :longest]) for each in (ids, mask)))


def _together(
    parts: Sequence[Sequence[int]], found: Sequence[Floats], shape: tuple[int, ...]
) -> Floats:
    """The groups' outputs in the order of the batch, [rows, ...] or [rows, length, width]."""
    long = found[0].ndim > 2
    wanted = (*shape, found[0].shape[2]) if long else (shape[0], *found[0].shape[1:])
    whole = np.zeros(wanted, found[0].dtype)
    for part, rows in zip(parts, found, strict=True):
        if long:
            whole[part, : rows.shape[1]] = rows
        else:
            whole[part] = rows
    return whole
