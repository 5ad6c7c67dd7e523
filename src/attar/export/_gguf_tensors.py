"""A model's tensors in ggml's types, under GGUF's names."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.core.grid import Grid
from attar.export._gguf_settings import POOLER, architecture
from attar.export.target import codes_of, quantized
from attar.layers import TiedHead
from attar.models import Model
from attar.ops import blocks
from attar.ops.rounding import Codes
from attar.runtimes._gguf import gguf_name, turned

Array = NDArray[Any]
_TABLES = ("embeddings.position_embeddings", "embeddings.token_type_embeddings")


def add_tensors(writer: Any, model: Model) -> None:
    """Add every tensor to the file, codes as they are and floats in the model's dtype."""
    from gguf import GGMLQuantizationType

    family = architecture(model)
    coded = {item.name: item for item in quantized(model)}
    for name, item in coded.items():
        data, kind = packed(codes_of(model, name), item.grid, item.width)
        rows = _order(model, name, len(data))
        full = data if rows is None else np.ascontiguousarray(data[rows])
        raw = getattr(GGMLQuantizationType, kind)
        writer.add_tensor(f"{gguf_name(name, family)}.weight", full, raw_dtype=raw)
    for name, value in _floats(model):
        module, _, part = name.rpartition(".")
        rows = _order(model, module, len(value))
        value = value if rows is None else value[torch.from_numpy(rows)]
        data, kind = _float(value.float() if module in _TABLES else value)
        raw = getattr(GGMLQuantizationType, kind)
        writer.add_tensor(f"{gguf_name(module, family)}.{part}", data, raw_dtype=raw)
    factors = None if family == "bert" else rotary_factors(model)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)


def packed(codes: Codes, grid: Grid, width: int) -> tuple[NDArray[np.uint8], str]:
    """Codes in blocks, [rows, bytes], and the type that they are."""
    group = grid.group_for(width)
    starts = np.arange(0, width, blocks.BLOCK) // group
    whole, scales = codes.codes.numpy(), codes.scales.float().numpy()[:, starts]
    if grid.numbers == "mxfp4":
        return blocks.mxfp4(whole, scales), "MXFP4"
    if codes.minima is not None:
        return blocks.q4_1(whole, scales, codes.minima.float().numpy()[:, starts]), "Q4_1"
    if codes.zeros is not None:
        minima = -scales * codes.zeros.float().numpy()[:, starts]
        return blocks.q4_1(whole, scales, minima), "Q4_1"
    if grid.bits == 8:
        return blocks.q8_0(whole, scales), "Q8_0"
    return blocks.q4_0(whole, scales), "Q4_0"


def rotary_factors(model: Model) -> NDArray[np.float32] | None:
    """What each rotary frequency is divided by, of the plain ones; None where they are plain."""
    rotary = model.base.rotary_emb
    theta, size = model.config.rope_parameters["rope_theta"], model.sizes.head
    plain = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
    factors = plain / rotary.inv_freq.double().numpy()
    return None if np.allclose(factors, 1.0, rtol=1e-5) else factors.astype(np.float32)


def _floats(model: Model) -> list[tuple[str, Tensor]]:
    """Parameters that are on no grid, a shared one once."""
    heads = [n for n, module in model.module.named_modules() if isinstance(module, TiedHead)]
    return [
        (name, parameter.detach())
        for name, parameter in model.module.named_parameters()
        if name.rpartition(".")[0] not in (*heads, POOLER)
    ]


def _order(model: Model, module: str, rows: int) -> NDArray[np.int64] | None:
    """How the rows of queries and keys are turned; None for all else."""
    if architecture(model) != "llama":
        return None
    sizes = model.sizes
    heads = {"q_proj": sizes.queries, "k_proj": sizes.keys}.get(module.rpartition(".")[2])
    return None if heads is None else turned(rows, heads)


def _float(value: Tensor) -> tuple[Array, str]:
    """Vectors in float32, for llama.cpp adds and multiplies them so; matrices as they are."""
    if value.dim() == 1 or value.dtype == torch.float32:
        return value.float().numpy(), "F32"
    if value.dtype == torch.bfloat16:
        return value.contiguous().view(torch.uint8).numpy(), "BF16"
    return value.numpy(), "F16"
