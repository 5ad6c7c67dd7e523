"""ExecuTorch: one file for phones, run by XNNPACK."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from attar.core.grid import Grid
from attar.export.graphs import decoder, encoder
from attar.export.target import Quantized, Target, tied
from attar.models import Model
from attar.models.places import places_of
from attar.ops.rounding import Codes
from attar.runtimes._program import DESCRIBED

LONGEST = 1024  # tokens that a decoder keeps keys and values of


class Executorch(Target):
    """`model.pte`, one row of tokens at a time, and `program.json`, which says how to feed it.

    A linear on a grid multiplies inputs that XNNPACK rounds to 8 bits, token by token. Scales of
    groups must be positive. A table that is looked up is kept in bytes.
    """

    name = "executorch"
    extra = "executorch"
    modules = ("executorch",)
    engine = "executorch"
    positive = True
    grids = (
        "int8 with one scale a row",
        "int2, int3 and int4 with one scale a row",
        "int2, int3 and int4 in groups whose scales are all positive, which --allow-rounding makes",
        "of embeddings that are looked up alone any integers without a minimum",
    )

    def problems(self, model: Model) -> Sequence[str]:
        return (decoder if model.task == "causal-lm" else encoder).problems(model)

    def holds(self, item: Quantized, model: Model) -> bool:
        grid = item.grid
        if grid.levels is not None or grid.minimum or item.inputs == "static":
            return False
        whole = item.width % grid.group_for(item.width) == 0
        if item.table and not tied(item.name, model):
            return whole
        return not grid.zero_point and (_per_row(item) or (whole and grid.bits < 8))

    def fits(self, item: Quantized, codes: Codes) -> bool:
        if item.table or _per_row(item):
            return True
        kept = codes.scales.float()
        return bool((kept > 0).all() and (kept.bfloat16().float() == kept).all())

    def nearest(self, item: Quantized) -> Grid:
        grid = item.grid
        if grid.bits == 8 or item.width % grid.group_for(item.width):
            return Grid(bits=grid.bits)
        return Grid(bits=grid.bits, group=grid.group)

    def write(self, model: Model, folder: Path) -> None:
        from attar.export.graphs.xnnpack_graph import XnnpackGraph

        context = _context(model)
        graph = XnnpackGraph(model, context)
        if model.task == "causal-lm":
            decoder.write_decoder(graph, model)
        else:
            encoder.write_encoder(graph, model)
        lowered = _lowered(graph.exported())
        with (folder / "model.pte").open("wb") as file:
            lowered.write_to_file(file)
        described = {"task": model.task, "context": context, "at_once": graph.at_once}
        described["codes"] = graph.notes
        (folder / DESCRIBED).write_text(json.dumps(described, indent=1) + "\n", "utf-8")


def _per_row(item: Quantized) -> bool:
    return item.grid.group_for(item.width) == item.width


def _context(model: Model) -> int:
    """How many tokens fit."""
    if model.task == "causal-lm":
        return min(int(model.config.max_position_embeddings), LONGEST)
    return places_of(model) or LONGEST


def _lowered(program: torch.export.ExportedProgram) -> Any:
    """The program with all that XNNPACK takes given to it."""
    exir: Any = import_module("executorch.exir")
    xnnpack: Any = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    logging.getLogger("executorch").setLevel(logging.ERROR)
    partitioner = [xnnpack.XnnpackPartitioner()]
    lowered = exir.to_edge_transform_and_lower(program, partitioner=partitioner)
    return lowered.to_executorch(exir.ExecutorchBackendConfig(run_reinplace_pass=True))
