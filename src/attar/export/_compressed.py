"""Codes as compressed-tensors lays them out, and the config that says so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attar.core.grid import Grid
from attar.export.target import Quantized, codes_of, quantized
from attar.layers import StaticLinear, TiedHead
from attar.models import Model
from attar.models.save import weights
from attar.ops.rounding import Codes

_OWN = ("codes", "scales", "zeros", "minima", "input_scale", "input_zero")
_DYNAMIC = {
    "num_bits": 8,
    "type": "int",
    "symmetric": False,
    "strategy": "token",
    "dynamic": True,
}
_STATIC = {
    "num_bits": 8,
    "type": "int",
    "symmetric": False,
    "strategy": "tensor",
    "dynamic": False,
}


def packed(model: Model) -> dict[str, Tensor]:
    """Every tensor of the folder, by its name."""
    items = _linears(model)
    own = {f"{item.name}.{part}" for item in quantized(model) for part in _OWN}
    found = {name: value for name, value in weights(model.module).items() if name not in own}
    for item in quantized(model):
        if item.table:
            table = model.module.get_submodule(item.name)
            found[f"{item.name}.weight"] = table.dequantized(model.module.dtype)
    for item in items:
        codes = codes_of(model, item.name)
        for name, tensor in _module(item, codes, model.module.dtype).items():
            found[f"{item.name}.{name}"] = tensor
        linear = model.module.get_submodule(item.name)
        if isinstance(linear, StaticLinear):
            found[f"{item.name}.input_scale"] = linear.input_scale.reshape(1)
            zero = linear.input_zero.to(torch.int16) - 128
            found[f"{item.name}.input_zero_point"] = zero.to(torch.int8).reshape(1)
    return found


def quantization_config(model: Model) -> dict[str, Any]:
    """What config.json says of it: a group for each way that modules are stored."""
    from compressed_tensors.quantization import QuantizationConfig

    groups: dict[str, dict[str, Any]] = {}
    for item in _linears(model):
        scheme = _scheme(item)
        group = groups.setdefault(repr(scheme), {**scheme, "targets": []})
        group["targets"].append(item.name)
    ignored = [] if len(groups) > 1 else _float_linears(model)
    if len(groups) == 1:
        (only,) = groups.values()
        only["targets"] = ["Linear"]
    formats = {group["format"] for group in groups.values()}
    checked = QuantizationConfig(
        config_groups={f"group_{i}": group for i, group in enumerate(groups.values())},  # pyright: ignore[reportArgumentType]
        format=formats.pop() if len(formats) == 1 else "mixed-precision",
        quantization_status="compressed",  # pyright: ignore[reportArgumentType]
        ignore=ignored,
    )
    # Transformers makes places for zero points as they are before packing, so that packed ones load
    # only where it unpacks them as it reads.
    unpacks = any(item.grid.zero_point and item.inputs == "float" for item in _linears(model))
    return {**checked.model_dump(mode="json"), **({"dequantize": True} if unpacks else {})}


def schemes(model: Model) -> int:
    """How many ways of storing linears there are."""
    return len({repr(_scheme(item)) for item in _linears(model)})


def _linears(model: Model) -> list[Quantized]:
    return [item for item in quantized(model) if not item.table]


def _float_linears(model: Model) -> list[str]:
    named = model.module.named_modules()
    return [name for name, module in named if isinstance(module, nn.Linear | TiedHead)]


def _scheme(item: Quantized) -> dict[str, Any]:
    grid = item.grid
    args: dict[str, Any] = {
        "num_bits": grid.bits,
        "type": "int" if grid.numbers == "int" else "float",
        "symmetric": not grid.zero_point,
        "strategy": "channel" if grid.group is None else "group",
        "group_size": None if grid.group is None else grid.group_for(item.width),
    }
    inputs = {"float": None, "dynamic": _DYNAMIC, "static": _STATIC}[item.inputs]
    kind = "pack-quantized" if inputs is None else "int-quantized"
    if grid.numbers != "int":
        kind = "float-quantized"
    return {"weights": args, "input_activations": inputs, "format": kind}


def _module(item: Quantized, codes: Codes, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of one module; codes and zero points are signed in this format."""
    found = {"weight_scale": codes.scales.to(dtype)}
    if item.grid.numbers != "int":
        found["weight"] = codes.codes.to(torch.uint8).view(torch.float8_e4m3fn)
        return found
    signed, zeros = _signed(codes, item.grid)
    if item.inputs != "float":
        found["weight"] = signed
        if zeros is not None:
            found["weight_zero_point"] = zeros
        return found
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    found["weight_packed"] = pack_to_int32(signed, item.grid.bits)
    found["weight_shape"] = torch.tensor(signed.shape)
    if zeros is not None:
        # cloned: what comes of packing columns shares its storage with more than it holds
        found["weight_zero_point"] = pack_to_int32(zeros, item.grid.bits, packed_dim=0).clone()
    return found


def _signed(codes: Codes, grid: Grid) -> tuple[Tensor, Tensor | None]:
    shift = 2 ** (grid.bits - 1) if grid.zero_point else 0
    zeros = None if codes.zeros is None else (codes.zeros.short() - shift).to(torch.int8)
    return (codes.codes.short() - shift).to(torch.int8), zeros
