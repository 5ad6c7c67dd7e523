"""OpenVINO: run by its runtime, and by openvino-genai where it is a language model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attar.core.grid import Grid
from attar.export.graphs import decoder, encoder
from attar.export.graphs.configs import write_configs
from attar.export.target import Quantized, Target
from attar.models import Model
from attar.runtimes.openvino import TOKENIZER


class Openvino(Target):
    """`openvino_model.xml` with its weights beside it, and a tokenizer in the same form.

    Grids are 4- or 8-bit constants that the plugin computes with as they are. Linears whose
    inputs are static multiply whole numbers; for the others the plugin rounds inputs as it
    runs, or computes in bfloat16.
    """

    name = "openvino"
    extra = "openvino"
    modules = ("openvino", "openvino_tokenizers")
    engine = "openvino"
    grids = ("int2, int3, int4 and int8 with one scale a row or a group, with a zero point or not",)

    def problems(self, model: Model) -> Sequence[str]:
        if model.task != "causal-lm":
            return encoder.problems(model)
        found = decoder.problems(model)
        if getattr(model.config, "attn_logit_softcapping", None):
            found.append(
                "its attention caps scores, which OpenVINO's attention does not. Export to onnx"
            )
        return found

    def holds(self, item: Quantized, model: Model) -> bool:
        return item.grid.levels is None and not item.grid.minimum

    def nearest(self, item: Quantized) -> Grid:
        grid = item.grid
        return Grid(bits=grid.bits, group=grid.group, offset="zero" if grid.minimum else "none")

    def write(self, model: Model, folder: Path) -> Sequence[str]:
        from attar.export.graphs.openvino_graph import OpenvinoGraph

        absent = [] if model.tokenizer is None else _tokenizers(model, folder)
        graph = OpenvinoGraph(model)
        if model.task == "causal-lm":
            decoder.write_decoder(graph, model)
        else:
            encoder.write_encoder(graph, model)
        _save(graph.built(), folder / "openvino_model.xml", compress_to_fp16=False)
        write_configs(model, folder)
        return absent


def _tokenizers(model: Model, folder: Path) -> list[str]:
    """Text to tokens and back, as graphs; why there are none, where it cannot be converted."""
    from openvino_tokenizers import convert_tokenizer

    try:
        found = convert_tokenizer(model.tokenizer, with_detokenizer=model.task == "causal-lm")
    except Exception as error:  # it raises RuntimeError, and others of its own
        said = str(error).strip().rpartition("\n")[2] or type(error).__name__
        return [
            f"openvino_tokenizers cannot convert the tokenizer ({said}), so that no graph of it is "
            "there: openvino-genai reads no texts with this export, and Attar's server does"
        ]
    names = (TOKENIZER, "openvino_detokenizer.xml")
    graphs = found if isinstance(found, tuple) else (found,)
    for graph, name in zip(graphs, names, strict=False):
        _save(graph, folder / name)
    return []


def _save(graph: Any, path: Path, **settings: Any) -> None:
    import openvino

    try:
        openvino.save_model(graph, path, **settings)
    except RuntimeError as error:  # of a full disk, say, which it does not tell
        free = shutil.disk_usage(path.parent).free
        said = str(error).strip().rpartition("\n")[2]
        raise OSError(f"OpenVINO could not write it ({said}); {free:,} bytes are free") from None
