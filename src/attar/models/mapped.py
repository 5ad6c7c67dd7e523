"""Weights that are mapped from a file: in memory only while they are in use.

safetensors maps a file, so a weight takes memory from when it is first read until the system
wants that memory for something else. A walk knows earlier: it uses one block at a time.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from torch import nn

Span = tuple[int, int]  # addresses, the second one not included

_PAGEOUT = 21  # MADV_PAGEOUT, Linux 5.4: take these pages back, and lose nothing


def mapped(modules: Iterable[nn.Module]) -> list[list[Span]]:
    """Where the weights of each module lie that are mapped from a file; none on other systems."""
    files = _files()
    return [
        [
            (start, start + tensor.nbytes)
            for tensor in chain(module.parameters(), module.buffers())  # those hold codes
            if any(
                low <= (start := tensor.data_ptr()) and start + tensor.nbytes <= high
                for low, high in files
            )
        ]
        for module in modules
    ]


def release(spans: Sequence[Span]) -> None:
    """Give this memory back to the system; what is used again is read from the file again."""
    if not spans:
        return
    system = ctypes.CDLL(None)
    for low, high in spans:
        low -= low % mmap.PAGESIZE
        # Advice: a system that does not know it, or may not follow it, says so and goes on.
        system.madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), _PAGEOUT)


def trim() -> None:
    """Give the system what was freed and is kept for later: blocks leave holes of other sizes."""
    if sys.platform != "linux":
        return
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if give_back is not None:
        give_back(ctypes.c_size_t(0))


def _files() -> list[Span]:
    """Where files are mapped to."""
    if sys.platform != "linux":
        return []
    found: list[Span] = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split()
        if inode != "0":
            low, high = (int(end, 16) for end in span.split("-"))
            found.append((low, high))
    return found
