"""ONNX: run by ONNX Runtime, and by onnxruntime-genai where it is a language model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from attar.core.grid import Grid
from attar.export.graphs import decoder, encoder
from attar.export.graphs.configs import write_configs
from attar.export.target import Quantized, Target
from attar.models import Model


class Onnx(Target):
    """`model.onnx`, its arrays beside it, and `genai_config.json` for a language model.

    A linear on a grid is a MatMulNBits of 4 or 8 bits, whose kernel rounds inputs to 8 bits
    block by block; linears on one grid that share inputs are joined.
    """

    name = "onnx"
    extra = "onnx"
    modules = ("onnx", "onnxruntime")
    engine = "onnxruntime"
    others = ("genai",)
    grids = ("int2, int3, int4 and int8 with one scale a row or a group, with a zero point or not",)

    def problems(self, model: Model) -> Sequence[str]:
        if model.task != "causal-lm":
            return encoder.problems(model)
        found = decoder.problems(model)
        if model.sizes.head % 16:
            found.append(
                f"ONNX Runtime's attention wants heads of a multiple of 16, and these have "
                f"{model.sizes.head}. Export to openvino, gguf or hf"
            )
        return found

    def holds(self, item: Quantized, model: Model) -> bool:
        return item.grid.levels is None and not item.grid.minimum

    def nearest(self, item: Quantized) -> Grid:
        grid = item.grid
        offset = "zero" if grid.minimum else "none"
        return Grid(bits=grid.bits, group=grid.group, offset=offset)

    def write(self, model: Model, folder: Path) -> None:
        from attar.export.graphs.onnx_file import OnnxFile
        from attar.export.graphs.onnx_graph import OnnxGraph

        with closing(OnnxFile(folder)) as file:
            graph = OnnxGraph(model, file)
            if model.task == "causal-lm":
                decoder.write_decoder(graph, model)
                text = json.dumps(_genai_config(model), indent=2) + "\n"
                (folder / "genai_config.json").write_text(text, "utf-8")
            else:
                encoder.write_encoder(graph, model)
            file.save(model.config.model_type)
        write_configs(model, folder)


def _genai_config(model: Model) -> dict[str, Any]:
    """What onnxruntime-genai reads; it allots keys and values by it."""
    config, heads = model.config, decoder.heads_of_block(model, 0)
    ends, pad = ends_of(model), config.pad_token_id
    if pad is None:
        pad = ends[0] if ends else config.vocab_size - 1  # mostly a row that no token has
    return {
        "model": {
            "type": "llama",  # how it is fed, whatever the family
            "vocab_size": config.vocab_size,
            "context_length": config.max_position_embeddings,
            "bos_token_id": config.bos_token_id if config.bos_token_id is not None else 1,
            "eos_token_id": ends or [pad],  # it wants one, and within the vocabulary
            "pad_token_id": pad,
            "decoder": {
                "filename": "model.onnx",
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "hidden_size": config.hidden_size,
                "head_size": heads.size,
                "num_attention_heads": heads.queries,
                "num_key_value_heads": heads.keys,
                "num_hidden_layers": len(model.blocks),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "max_length": config.max_position_embeddings,
            "past_present_share_buffer": True,
            "do_sample": False,
        },
    }


def ends_of(model: Model) -> list[int]:
    """The tokens that end an answer, by the generation config, the config and the tokenizer.

    None where none of them names one.
    """
    generation = getattr(model.module, "generation_config", None)
    found: list[int] = []
    for source in (generation, model.config, model.tokenizer):
        value = getattr(source, "eos_token_id", None)
        listed = value if isinstance(value, list) else [value]
        found += [int(one) for one in listed if one is not None and one not in found]
    return found
