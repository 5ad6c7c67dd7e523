"""onnxruntime-genai: language models in ONNX, with the loop that writes them in C++."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import ModelError
from attar.runtimes._sampling import log_softmax
from attar.runtimes._writing import Following, LogitsDecoder
from attar.runtimes.onnxruntime import OnnxRuntime, context_of
from attar.runtimes.runtime import Decoder, Engine, Floats, StoredCodes


class Genai(Engine):
    """Runs a folder with `genai_config.json` on the processor."""

    name = "genai"
    extra = "onnx"
    modules = ("onnx", "onnxruntime_genai")
    tasks = ("causal-lm",)

    def holds(self, folder: Path) -> bool:
        return (folder / "genai_config.json").is_file()

    def open(self, folder: Path, threads: int | None = None) -> Decoder:
        self.require()
        genai = _genai()
        genai.disable_telemetry_events()
        try:
            config = genai.Config(str(folder))
            if threads:
                options = {"intra_op_num_threads": threads}
                overlay = {"model": {"decoder": {"session_options": options}}}
                config.overlay(json.dumps(overlay))
            return GenaiDecoder(genai.Model(config), context_of(folder))
        except Exception as error:  # it raises RuntimeError for all
            said = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"onnxruntime-genai cannot open {folder}: {said}. Export it again"
            ) from None

    def read_back(self, folder: Path) -> Mapping[str, StoredCodes]:
        return OnnxRuntime().read_back(folder)

    def version(self) -> str:
        return f"onnxruntime-genai {_genai().__version__}"


def _genai() -> Any:
    return import_module("onnxruntime_genai")  # its names are C++'s, which no type checker sees


class GenaiDecoder(LogitsDecoder):
    """A language model; tokens are chosen here, by the logits that it hands out."""

    engine = "genai"

    def __init__(self, model: Any, context: int) -> None:
        self._model: Any = model
        self.context = context

    def close(self) -> None:
        self._model = None

    def _generator(self, length: int) -> Any:
        """One text, with room for this many tokens."""
        genai = _genai()
        params = genai.GeneratorParams(self._model)
        params.set_search_options(max_length=min(length + 1, self.context))
        return genai.Generator(self._model, params)

    def logprobs(self, ids: Sequence[int]) -> Floats:
        generator = self._generator(len(ids))
        generator.append_tokens(np.array(ids, np.int32))
        return log_softmax(generator.get_output("logits")[0])

    def begin(self, length: int) -> Following:
        generator = self._generator(length)

        def following(ids: Sequence[int]) -> Floats:
            generator.append_tokens(np.array(ids, np.int32))
            return generator.get_logits().reshape(-1)

        return following
