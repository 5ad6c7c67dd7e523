"""Codes as bytes: eight at a time, without a bit between them."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from attar.core.grid import Grid


def packed_width(width: int, bits: int) -> int:
    """Bytes of a row of `width` codes: runs of eight codes take `bits` bytes."""
    return width if bits == 8 else -(-width // 8) * bits


def pack(codes: Tensor, grid: Grid) -> Tensor:
    """Codes as bytes, uint8 [rows, packed_width], little-endian within a run of eight.

    Codes that may be negative are stored unsigned, 2^(bits-1) added.
    """
    offset = 2 ** (grid.bits - 1) if grid.low else 0
    values = codes.to(torch.int16) + offset
    if grid.bits == 8:
        return values.to(torch.uint8)
    rows, width = values.shape
    values = functional.pad(values, (0, -width % 8)).reshape(rows, -1, 8).to(torch.int64)
    shifts = torch.arange(8, device=codes.device) * grid.bits
    word = (values << shifts).sum(-1, keepdim=True)
    bytes_ = (word >> (torch.arange(grid.bits, device=codes.device) * 8)) & 255
    return bytes_.reshape(rows, -1).to(torch.uint8)


def unpack(packed: Tensor, grid: Grid, width: int) -> Tensor:
    """The codes that `pack` stored, int16 [rows, width]."""
    offset = 2 ** (grid.bits - 1) if grid.low else 0
    if grid.bits == 8:
        return packed.to(torch.int16) - offset
    if grid.bits == 4:
        values = torch.stack((packed & 15, packed >> 4), -1).reshape(len(packed), -1)
        return values[:, :width].to(torch.int16) - offset
    runs = packed.reshape(len(packed), -1, grid.bits).to(torch.int32)
    word = (runs << (torch.arange(grid.bits, device=packed.device) * 8)).sum(-1, keepdim=True)
    values = (word >> (torch.arange(8, device=packed.device) * grid.bits)) & (2**grid.bits - 1)
    return values.reshape(len(packed), -1)[:, :width].to(torch.int16) - offset
