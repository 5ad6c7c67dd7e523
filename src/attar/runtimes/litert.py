"""LiteRT: .tflite files, run here by the same runtime as on phones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import ModelError
from attar.runtimes._program import DESCRIBED, described
from attar.runtimes._writing import OneText
from attar.runtimes.runtime import Decoder, Encoder, Engine, Floats, Ids, StoredCodes

FILE = "model.tflite"


class LiteRt(Engine):
    """Runs `model.tflite` on the processor, a row at a time."""

    name = "litert"
    extra = "litert"
    modules = ("ai_edge_litert",)

    def holds(self, folder: Path) -> bool:
        return (folder / FILE).is_file() and (folder / DESCRIBED).is_file()

    def open(self, folder: Path, threads: int | None = None) -> Decoder | Encoder:
        self.require()
        known = described(folder)
        graph = _Graph(folder / FILE, threads)
        if known["task"] != "causal-lm":
            return LiteRtEncoder(graph)
        return LiteRtDecoder(graph, int(known["context"]))

    def read_back(self, folder: Path) -> Mapping[str, StoredCodes]:
        self.require()
        schema: Any = import_module("ai_edge_litert.schema_py_generated")
        model = schema.Model.GetRootAs((folder / FILE).read_bytes(), 0)
        graph = model.Subgraphs(0)
        tensors = [graph.Tensors(index) for index in range(graph.TensorsLength())]
        data = {
            each.Name().decode(): model.Buffers(each.Buffer()).DataAsNumpy() for each in tensors
        }
        found: dict[str, StoredCodes] = {}
        for tensor in tensors:
            name, four = tensor.Name().decode(), tensor.Type() == schema.TensorType.INT4
            if tensor.Quantization() is not None and tensor.Quantization().ScaleLength():
                signs = data.get(f"{name}.signs")
                found[name] = _stored(tensor, data[name], four, signs)
        return found

    def version(self) -> str:
        return f"ai-edge-litert {version('ai-edge-litert')}"


def _stored(tensor: Any, data: Any, four: bool, signs: Any) -> StoredCodes:
    quantized = tensor.Quantization()
    rows, width = (int(size) for size in tensor.ShapeAsNumpy())
    if four:
        codes = np.stack((data & 15, data >> 4), -1).reshape(-1)[: rows * width].astype(np.int16)
        codes = np.where(codes > 7, codes - 16, codes)
    else:
        codes = data.view(np.int8).astype(np.int16)
    zeros = quantized.ZeroPointAsNumpy()
    if np.any(zeros):
        raise ModelError(f"{tensor.Name().decode()} has zero points. Export it again")
    scales = quantized.ScaleAsNumpy().astype(np.float32).reshape(rows, 1)
    if signs is not None:
        scales *= signs.view(np.float32).reshape(rows, 1)
    return StoredCodes(codes.reshape(rows, width), scales, width)


class _Graph:
    """An interpreter, told anew how long its row is where that changed."""

    def __init__(self, path: Path, threads: int | None) -> None:
        library: Any = import_module("ai_edge_litert.interpreter")
        try:
            self._interpreter = library.Interpreter(str(path), num_threads=threads)
            inputs = self._interpreter.get_input_details()
            self.inputs = {each["name"]: each["index"] for each in inputs}
            outputs = self._interpreter.get_output_details()
            self.outputs = {each["name"]: each["index"] for each in outputs}
            self._found = "logits" if "logits" in self.outputs else "last_hidden_state"
        except (RuntimeError, ValueError) as error:
            said = str(error).strip().partition("\n")[0]
            raise ModelError(f"LiteRT cannot open {path}: {said}. Export it again") from None
        self._length = 0

    def sized(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Take rows of this length; keys and values that were there are lost with a new one."""
        length = max(max(shape) for shape in shapes.values())
        if length != self._length:
            for name, shape in shapes.items():
                self._interpreter.resize_tensor_input(self.inputs[name], shape)
            self._interpreter.allocate_tensors()
            self._length = length

    def zeros(self, name: str) -> Floats:
        """What an input is at first."""
        shape = self._interpreter.get_tensor(self.inputs[name]).shape
        return np.zeros(shape, np.float32)

    def read(self, name: str) -> Floats:
        """An output of the last run."""
        return self._interpreter.get_tensor(self.outputs[name])

    def run(self, given: Mapping[str, Any]) -> Floats:
        """The logits, or last hidden states where there is no head, with these inputs."""
        for name, value in given.items():
            self._interpreter.set_tensor(self.inputs[name], value)
        self._interpreter.invoke()
        return self.read(self._found)


class LiteRtDecoder(OneText):
    """A language model, with the keys and values of one text at a time."""

    engine = "litert"

    def __init__(self, graph: _Graph, context: int) -> None:
        super().__init__(context)
        self._graph: Any = graph
        self._past: dict[str, Any] = {}

    def close(self) -> None:
        self._graph, self._past = None, {}

    def run(self, ids: Sequence[int], start: int) -> Floats:
        graph, count = self._graph, len(ids)
        graph.sized({"input_ids": (1, count), "positions": (count,)})
        if not start:
            self._past = {name: graph.zeros(name) for name in graph.inputs if "past." in name}
        places = np.arange(start, start + count, dtype=np.int32)
        given = {"input_ids": np.array([ids], np.int32), "positions": places}
        found = graph.run({**given, **self._past})
        self._past = {name: graph.read(name.replace("past.", "present.")) for name in self._past}
        return found[0]


class LiteRtEncoder(Encoder):
    """A classifier, masked language model, or plain encoder."""

    engine = "litert"

    def __init__(self, graph: _Graph) -> None:
        self._graph: Any = graph

    def close(self) -> None:
        self._graph = None

    def run(self, ids: Ids, mask: Ids) -> Floats:
        found: list[Floats] = []
        for row, shown in zip(ids, mask, strict=True):
            shape = (1, len(row))
            self._graph.sized({"input_ids": shape, "attention_mask": shape})
            given = {"input_ids": row[None], "attention_mask": shown[None]}
            found.append(self._graph.run({k: v.astype(np.int32) for k, v in given.items()}))
        return np.concatenate(found)
