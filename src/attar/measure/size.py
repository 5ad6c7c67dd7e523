"""Bytes on disk."""

from __future__ import annotations

from pathlib import Path

_WEIGHTS = (".safetensors", ".gguf")
_GRAPHS = (".onnx", ".data", ".tflite", ".pte")
_OPENVINO = "openvino_model"  # whose tokenizer is in files of the same kinds


def weights_size(path: Path) -> int:
    """Bytes of a model's weights: one file, or the files of weights right in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.iterdir() if file.suffix in _WEIGHTS)


def engine_size(folder: Path) -> int:
    """Bytes of all that an engine needs to run an export's weights: they and, if any, the graph.

    No tokenizer counts, but for the one within a GGUF file, and no config, page or text.
    """
    graphs = (f for f in folder.iterdir() if f.suffix in _GRAPHS or f.stem == _OPENVINO)
    return weights_size(folder) or sum(file.stat().st_size for file in graphs)


def total_size(path: Path) -> int:
    """Bytes of everything: weights, tokenizer, config, and what else lies in the folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
