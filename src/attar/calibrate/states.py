"""Hidden states of all batches between two blocks: in memory, or on disk where they do not fit."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attar.core.context import Context
from attar.measure.machine import free_memory

_HALTED = 10  # a batch that waits inside a block holds about so many times its hidden states
_SHARE = 0.5  # of free memory, what states may take


class States(Sequence[Tensor]):
    """One tensor for each batch; those on disk are read each time they are asked for."""

    def __init__(self, tensors: Iterable[Tensor], folder: Path | None = None) -> None:
        self._folder, self._kept = folder, list[Tensor | str]()
        if folder is not None:
            folder.mkdir(parents=True)
        for tensor in tensors:
            self.append(tensor)

    def append(self, tensor: Tensor) -> None:
        """Keep one more."""
        self._kept.append(tensor if self._folder is None else self._write(self._folder, tensor))

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        found = self._kept[index]
        if isinstance(found, Tensor) or self._folder is None:
            return found  # type: ignore[return-value]
        return load_file(self._folder / f"{index % len(self)}.safetensors", found)["states"]

    def __len__(self) -> int:
        return len(self._kept)

    def drop(self) -> None:
        """Give the space on disk back."""
        if self._folder is not None:
            shutil.rmtree(self._folder)

    def _write(self, folder: Path, tensor: Tensor) -> str:
        path = folder / f"{len(self._kept)}.safetensors"
        save_file({"states": tensor.contiguous()}, path)
        return str(tensor.device)


def place(one: Tensor, count: int, ctx: Context) -> Path | None:
    """The folder for so many such states where memory does not hold them, halted in a block."""
    size = one.nbytes * count
    if ctx.scratch is None or size * _HALTED <= _SHARE * (ctx.memory or _free(one.device)):
        return None
    folder = ctx.scratch / "states"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
    return folder


def _free(device: torch.device) -> int:
    """Bytes that can still be taken where states are computed."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
