"""What a kind makes of a tiny model, in a few numbers that differ little from CPU to CPU."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import data_steps
from attar.core import registry
from attar.data.example import Dataset
from attar.layers import CacheGrid, LowRank, QuantizedEmbedding, QuantizedLinear, StaticLinear
from attar.models import Model
from conformance.test_every_kind import SMALL, press, start

GOLDEN = Path(__file__).with_name("golden.json")
COMMAND = "python tests/golden/regenerate.py"
_PROJECTIONS = 4
_DIGITS = 4


def golden() -> dict[str, Any]:
    """The entries of golden.json by kind."""
    return json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.exists() else {}


def entry(kind: str, folder: Path) -> dict[str, Any]:
    """What golden.json holds of a kind: its version, what it began with, what it made."""
    if kind in data_steps.SMALL:
        return _entry_of_data(kind, folder)
    tasks = registry.find(kind).tasks
    task = "causal-lm" if "causal-lm" in tasks else tasks[0]
    model = start(kind, {"masked-lm": "bert", "contrastive": "clip"}.get(task, "llama"), task)
    before = _weights(model)
    pressed = press(kind, model, folder)
    return {
        "version": registry.find(kind).version,
        "settings": SMALL[kind],
        "before": _of(before, {}),
        "after": {**_of(_weights(pressed), before), **_of_codes(pressed)},
    }


def _entry_of_data(kind: str, folder: Path) -> dict[str, Any]:
    return {
        "version": registry.find(kind).version,
        "settings": data_steps.SMALL[kind],
        "before": _of_rows(data_steps.rows()),
        "after": _of_rows(data_steps.made(kind, folder)),
    }


def _of_rows(data: Dataset) -> dict[str, Any]:
    """How many rows, how long, and how many of each class."""
    found: dict[str, Any] = {
        "rows": len(data.examples),
        "words": sum(len(example.text.split()) for example in data.examples),
        "different": len({word for example in data.examples for word in example.text.split()}),
    }
    for label in data.labels:
        found[label] = sum(example.label == label for example in data.examples)
    return {**found, "direction": []}


def _weights(model: Model) -> dict[str, Tensor]:
    """Every weight as it counts, whatever it is kept as."""
    found = {name: value.detach().clone() for name, value in model.module.named_parameters()}
    for name, part in model.module.named_modules():
        if isinstance(part, LowRank):
            for factor in ("up", "down"):
                found.pop(f"{name}.{factor}.weight", None)
        if isinstance(part, LowRank | QuantizedLinear | QuantizedEmbedding):
            found[f"{name}.weight"] = part.weight.detach()
    return found


def _of(weights: dict[str, Tensor], before: dict[str, Tensor]) -> dict[str, Any]:
    """How many, how large, and what was moved: how far, and in which direction."""
    tall = torch.cat([weight.flatten() for weight in weights.values()])
    moved = torch.cat([_moved(weight, before.get(name)) for name, weight in weights.items()])
    signs = torch.cat([_signs(name, weight) for name, weight in weights.items()], dim=1)
    found = {
        "numbers": len(tall),
        "zeros": float((tall == 0).double().mean()),
        "size": float(tall.abs().double().mean()),
        "moved": float(moved.abs().double().mean()),
    }
    direction = signs @ moved.double() / moved.double().norm().clamp_min(1e-30)
    return {**_short(found), "direction": [round(value, 3) for value in direction.tolist()]}


def _moved(weight: Tensor, before: Tensor | None) -> Tensor:
    """The change; all of it where there was no such weight, or one of another shape."""
    comparable = before is not None and before.shape == weight.shape
    return (weight - before if comparable else weight).flatten()


def _signs(name: str, weight: Tensor) -> Tensor:
    """Fixed random signs for each number of a weight, [projections, numbers]."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    shape = (_PROJECTIONS, weight.numel())
    return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1


def _of_codes(model: Model) -> dict[str, float]:
    """Codes, scales and offsets of quantized modules, the grids of their inputs and of caches."""
    parts = [part for part in model.module.modules() if isinstance(part, QuantizedLinear)]
    codes = [part.unpacked() for part in parts]
    static = [part for part in parts if isinstance(part, StaticLinear)]
    found = {
        "codes": [one.codes for one in codes],
        "scales": [one.scales for one in codes],
        "zeros": [one.zeros for one in codes if one.zeros is not None],
        "minima": [one.minima for one in codes if one.minima is not None],
        "cache scales": [
            scale
            for part in model.module.modules()
            if isinstance(part, CacheGrid)
            for scale in part.buffers()
        ],
        "input scales": [part.input_scale for part in static],
        "input zeros": [part.input_zero for part in static],
    }
    return _short({name: _mean(tensors) for name, tensors in found.items() if tensors})


def _mean(tensors: list[Tensor]) -> float:
    return float(torch.cat([tensor.double().abs().flatten() for tensor in tensors]).mean())


def _short(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.{_DIGITS}g}") for name, value in values.items()}
