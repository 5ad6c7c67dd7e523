"""Codes out of a compressed-tensors folder, unpacked with that package's own functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import MissingPackage, ModelError
from attar.runtimes.runtime import StoredCodes, ends_of

_SCALE = ".weight_scale"


def read_compressed(folder: Path, quantization: Mapping[str, Any]) -> dict[str, StoredCodes]:
    """The codes of every module with a scale, by its name."""
    tensors = _tensors(folder)
    names = [key.removesuffix(_SCALE) for key in tensors if key.endswith(_SCALE)]
    return {name: _codes(name, tensors, _weights_of(name, quantization)) for name in names}


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


def _weights_of(name: str, quantization: Mapping[str, Any]) -> Mapping[str, Any]:
    """How the weights of one module are stored: a group's that names it, or all linears."""
    groups = quantization["config_groups"].values()
    for wanted in (name, "Linear"):
        for group in groups:
            if wanted in group["targets"]:
                return group["weights"]
    raise ModelError(f"{name} has a scale, and no group of the config names it")


def _codes(name: str, tensors: Mapping[str, Any], weights: Mapping[str, Any]) -> StoredCodes:
    scales = tensors[name + _SCALE].float()
    bits, symmetric = weights["num_bits"], weights["symmetric"]
    zeros = None
    if f"{name}.weight_packed" in tensors:
        shape = tensors[f"{name}.weight_shape"]
        codes = _unpack()(tensors[f"{name}.weight_packed"], bits, shape)
        if not symmetric:
            packed = tensors[f"{name}.weight_zero_point"]
            zeros = _unpack()(packed, bits, (int(shape[0]), scales.shape[1]), packed_dim=0)
    else:
        codes = tensors[f"{name}.weight"]
        zeros = None if symmetric else tensors[f"{name}.weight_zero_point"]
    if weights["type"] == "float":
        return StoredCodes(
            codes.view(_bytes()).short().numpy(), scales.numpy(), _group(codes, weights)
        )
    shift = 0 if symmetric else 2 ** (bits - 1)
    inputs = None
    if f"{name}.input_scale" in tensors:  # codes of inputs are kept from -128
        zero = int(tensors[f"{name}.input_zero_point"]) + 128
        inputs = ends_of(float(tensors[f"{name}.input_scale"]), zero)
    return StoredCodes(
        codes.short().numpy() + np.int16(shift),
        scales.numpy(),
        _group(codes, weights),
        None if zeros is None else zeros.short().numpy() + np.int16(shift),
        inputs=inputs,
    )


def _group(codes: Any, weights: Mapping[str, Any]) -> int:
    return weights["group_size"] if weights["strategy"] == "group" else codes.shape[1]


def _bytes() -> Any:
    import torch

    return torch.uint8


def _unpack() -> Any:
    try:
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    except ImportError:
        raise MissingPackage(
            "reading packed codes of compressed-tensors", "pip install 'attar[hf]'"
        ) from None
    return unpack_from_int32
