"""LiteRT: one .tflite file for phones and browsers, run by TensorFlow's own runtime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from attar.core.grid import Grid
from attar.export.graphs import decoder, encoder
from attar.export.target import Quantized, Target, quantized
from attar.models import Model
from attar.models.places import places_of
from attar.runtimes._program import DESCRIBED

LONGEST = 1024  # tokens that a decoder keeps keys and values of
_MOST = 2**31  # bytes of a file: places in it are 32-bit numbers


class Litert(Target):
    """`model.tflite`, one row of tokens at a time, and `program.json`, which says how to feed it.

    Written as its format says, operator by operator, so no converter is needed. Linears on a grid
    multiply inputs that the runtime rounds to 8 bits, token by token.
    """

    name = "litert"
    extra = "litert"
    modules = ("ai_edge_litert",)
    engine = "litert"
    grids = ("int2, int3, int4 and int8 with one scale a row",)

    def problems(self, model: Model) -> Sequence[str]:
        found = [*(decoder if model.task == "causal-lm" else encoder).problems(model)]
        size = _size(model)
        if size >= _MOST:
            found.append(
                f"its weights are {size / 1e9:.1f} GB there, floats in 32 bits, and one file holds "
                f"{_MOST / 1e9:.1f}. Quantize its linears and tables, or export to onnx or openvino"
            )
        return found

    def holds(self, item: Quantized, model: Model) -> bool:
        grid = item.grid
        whole = grid.levels is None and grid.offset == "none" and item.inputs != "static"
        return whole and grid.group_for(item.width) == item.width

    def nearest(self, item: Quantized) -> Grid:
        return Grid(bits=item.grid.bits)

    def write(self, model: Model, folder: Path) -> None:
        from attar.export.graphs.tflite_file import TfliteFile
        from attar.export.graphs.tflite_graph import TfliteGraph

        decodes = model.task == "causal-lm"
        most = int(model.config.max_position_embeddings)
        context = min(most, LONGEST) if decodes else places_of(model) or most
        file = TfliteFile()
        graph = TfliteGraph(model, file, context)
        (decoder.write_decoder if decodes else encoder.write_encoder)(graph, model)
        file.save(folder / "model.tflite")
        described = {"task": model.task, "context": context}
        (folder / DESCRIBED).write_text(json.dumps(described, indent=1) + "\n", "utf-8")


def _size(model: Model) -> int:
    """Bytes of all weights in the file."""
    coded = {item.name: item for item in quantized(model)}
    codes = sum(i.rows * (i.width if i.grid.bits > 4 else i.width // 2) for i in coded.values())
    named = model.module.named_parameters()
    floats = sum(p.numel() for name, p in named if name.rpartition(".")[0] not in coded)
    return codes + 4 * floats
