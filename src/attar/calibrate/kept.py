"""Blocks that a walk is done with, each in a file of its own.

A walk that was killed finds them and goes on after the last. A block that was kept is mapped
from its file, so what it holds takes memory only while it is in use.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from attar.core.disk import sync
from attar.models.mapped import mapped, release
from attar.models.masks import is_masked, mark
from attar.models.structure import replay, structure

_FACTS = "attar"


class KeptBlocks:
    """The files of a walk, under a folder of the step's own; without one nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def keep(self, index: int, block: nn.Module, finding: Any) -> None:
        """Write a block and what was found about it, and map it from there."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        masked = [name for name, child in block.named_modules() if is_masked(child)]
        facts = {"structure": structure(block), "masked": masked, "finding": finding}
        path = self._path(index)
        draft = path.with_suffix(f".{os.getpid()}")
        state = {name: value.detach().contiguous() for name, value in block.state_dict().items()}
        try:
            save_file(state, draft, {_FACTS: json.dumps(facts)})
            sync(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        self._fill(block, path, _device(block))

    def restore(self, index: int, block: nn.Module) -> tuple[Any] | None:
        """Make a block what was kept of it; what was found about it. None where nothing was."""
        if self.folder is None or not self._path(index).exists():
            return None
        path = self._path(index)
        try:
            with safe_open(path, "pt") as file:
                facts = cast("dict[str, Any]", json.loads(file.metadata()[_FACTS]))
        except (OSError, ValueError, KeyError, SafetensorError):
            return None  # it is made again
        device = _device(block)
        replay(block, facts["structure"])
        self._fill(block, path, device)
        for name in facts["masked"]:
            mark(block.get_submodule(name))
        return (facts["finding"],)

    def _path(self, index: int) -> Path:
        return cast("Path", self.folder) / f"{index:05d}.safetensors"

    @staticmethod
    def _fill(block: nn.Module, path: Path, device: str) -> None:
        block.load_state_dict(load_file(path, device), assign=True)
        (spans,) = mapped([block])
        release(spans)


def _device(block: nn.Module) -> str:
    return str(next(block.parameters()).device)  # every block has norms
