"""Bytes on disk."""

from __future__ import annotations

from pathlib import Path

_WEIGHTS = (".safetensors", ".gguf")


def weights_size(path: Path) -> int:
    """Bytes of a model's weights: one file, or the files of weights right in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.iterdir() if file.suffix in _WEIGHTS)


def total_size(path: Path) -> int:
    """Bytes of everything: weights, tokenizer, config, and what else lies in the folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
