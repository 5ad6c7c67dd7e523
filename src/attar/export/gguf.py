"""One GGUF file for llama.cpp, with the tokenizer and the chat template inside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from attar.core.grid import Grid
from attar.export._gguf_settings import ARCHITECTURES, add_settings, architecture, settings_problems
from attar.export._refused import own_modules
from attar.export.target import Quantized, Target
from attar.layers import QuantizedEmbedding, QuantizedLinear, TiedHead
from attar.models import Model
from attar.ops.rounding import Codes

_HELD = (QuantizedLinear, QuantizedEmbedding, TiedHead)
_BLOCK = 32
FILE = "model.gguf"


class Gguf(Target):
    """Codes in ggml's blocks of 32, scales repeated where a group is larger.

    Symmetric codes of 2 to 4 bits become q4_0, those with a zero point or a minimum q4_1, 8 bits
    q8_0; floats keep the model's dtype, norms, biases, positions and token types are float32.
    """

    name = "gguf"
    extra = "gguf"
    modules = ("gguf",)
    engine = "llama-cpp"
    grids = (
        "int2, int3, int4 and int8 in groups or by channel",
        "int2, int3 and int4 with a minimum (-min), or with a zero point (-zp) where the scale "
        "times the zero point is a float16 number",
        "mxfp4",
    )

    def problems(self, model: Model) -> Sequence[str]:
        from attar.export._gguf_vocabulary import vocabulary_problem

        known = ARCHITECTURES.get(model.task)
        if known is None:
            whom = "decoders (causal-lm) and encoders that make vectors (embedding)"
            return [f"the model is for {model.task}, and GGUF is for {whom}"]
        kind = model.config.model_type
        if kind not in known:
            return [
                f"the architecture {kind} is not among those written here for {model.task}: "
                + ", ".join(known)
            ]
        found = own_modules(model, _HELD, "llama.cpp")
        return [*found, *settings_problems(model), *vocabulary_problem(model)]

    def holds(self, item: Quantized, model: Model) -> bool:
        grid = item.grid
        if item.width % _BLOCK or item.inputs == "static":
            return False
        if grid.numbers == "mxfp4":
            return True
        return grid.numbers == "int" and (grid.bits <= 4 or grid.offset == "none")

    def fits(self, item: Quantized, codes: Codes) -> bool:
        minima = codes.minima
        if codes.zeros is not None:
            minima = codes.scales.float() * codes.zeros.float()
        halves = [codes.scales] if minima is None else [codes.scales, minima]
        return all(bool((part.half().float() == part.float()).all()) for part in halves)

    def nearest(self, item: Quantized) -> Grid | None:
        if item.width % _BLOCK:
            return None
        if item.grid.bits == 8:
            return Grid(bits=8, group=item.grid.group)
        symmetric = item.grid.numbers == "int" and item.grid.offset == "none"
        offset = "none" if symmetric else "minimum"
        return Grid(bits=item.grid.bits, group=item.grid.group or _BLOCK, offset=offset)

    def write(self, model: Model, folder: Path) -> None:
        from gguf import GGUFWriter

        from attar.export._gguf_tensors import add_tensors
        from attar.export._gguf_vocabulary import add_vocabulary
        from attar.export.graphs.configs import write_configs

        with closing(GGUFWriter(folder / FILE, architecture(model))) as made:
            writer: Any = made
            add_settings(writer, model)
            add_vocabulary(writer, model)
            add_tensors(writer, model)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        if model.task != "causal-lm":
            write_configs(model, folder)  # how vectors are made of states, for Attar's server
