"""A folder for transformers and vLLM: plain where weights are float, else compressed-tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from attar.core.grid import Grid
from attar.errors import MissingPackage
from attar.export._compressed import packed, quantization_config, schemes
from attar.export._refused import own_modules
from attar.export.target import Quantized, Target, quantized
from attar.layers import QuantizedEmbedding, QuantizedLinear, TiedHead
from attar.models import Model
from attar.models.load import skeleton
from attar.models.save import weights, write

_PACKAGE = "compressed_tensors"
_HELD = (QuantizedLinear, QuantizedEmbedding, TiedHead)


class Hf(Target):
    """What `AutoModelFor....from_pretrained` loads without Attar.

    Codes of linears are packed as compressed-tensors packs them. Tables of embeddings are floats
    there, as transformers loads no others: exactly the numbers that the artifact computes with.
    """

    name = "hf"
    extra = "hf"
    engine = "torch"
    grids = (
        "int2, int3, int4 and int8 in groups or by channel, with a zero point (-zp) or without",
        "fp8-e4m3",
    )

    def problems(self, model: Model) -> Sequence[str]:
        if any(not item.table for item in quantized(model)) and not find_spec(_PACKAGE):
            raise MissingPackage("exporting codes to hf", "pip install 'attar[hf]'")
        plain = _plain(model)
        found: list[str] = []
        for name, module in model.module.named_modules():
            if not isinstance(module, _HELD):
                continue
            try:
                there = plain.get_submodule(name)
            except AttributeError:  # within a module of Attar's own, which is told of
                continue
            if not isinstance(there, nn.Linear | nn.Embedding):
                kind = type(there).__name__
                found.append(f"{name} is a {kind} in transformers, which holds no codes there")
        return [*own_modules(model, _HELD, "transformers"), *found, *_cannot_load(model)]

    def floats(self, item: Quantized) -> bool:
        return item.table

    def holds(self, item: Quantized, model: Model) -> bool:
        if item.table:
            return True
        if item.outputs:
            return False
        grid, group = item.grid, item.grid.group_for(item.width)
        if grid.group is not None and item.width % group:
            return False
        if item.inputs != "float":
            return grid.numbers == "int" and not grid.minimum
        return grid.numbers == "fp8-e4m3" or (grid.numbers == "int" and not grid.minimum)

    def nearest(self, item: Quantized) -> Grid:
        grid = item.grid
        whole = grid.group is None or item.width % grid.group_for(item.width) == 0
        group = grid.group if whole else None
        offset = "none" if grid.offset == "none" or item.inputs != "float" else "zero"
        return Grid(bits=grid.bits, group=group, offset=offset)

    def write(self, model: Model, folder: Path) -> None:
        if not any(True for _ in quantized(model)):
            write(model, folder, weights(model.module), None)
            return
        coded = any(not item.table for item in quantized(model))  # tables are floats there
        write(model, folder, packed(model), quantization_config(model) if coded else None)


def _cannot_load(model: Model) -> Iterator[str]:
    """What transformers 5 would not load, whoever wrote it."""
    coded = [item for item in quantized(model) if not item.table]
    if coded and model.config.model_type in _ASKS_FOR_WEIGHTS:
        yield (
            f"transformers asks the linears of {model.config.model_type} for weights while it "
            "loads them, and those on a grid have none yet. Export to another target"
        )
    zeros = [item for item in coded if item.grid.zero_point and item.inputs == "float"]
    if zeros and schemes(model) > 1:
        yield (
            f"{zeros[0].name} and others have zero points, which transformers loads only where "
            "all linears are on one grid with groups of one size. Take -g32 for all, or a grid "
            "without zero points"
        )


_ASKS_FOR_WEIGHTS = ("modernbert",)


def _plain(model: Model) -> Any:
    """The skeleton that transformers makes of the config alone."""
    config = copy.copy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return skeleton(config, model.task, model.labels).module
