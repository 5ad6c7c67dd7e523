"""LiteRT: .tflite files, run here by the same runtime as on phones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import ModelError
from attar.runtimes._drawing import OneText
from attar.runtimes.runtime import Decoder, Encoder, Engine, Floats, Ids, StoredCodes

FILE, DESCRIBED = "model.tflite", "program.json"


class LiteRt(Engine):
    """Runs `model.tflite` on the processor, a row at a time."""

    name = "litert"
    extra = "litert"
    modules = ("ai_edge_litert",)

    def holds(self, folder: Path) -> bool:
        return (folder / FILE).is_file() and (folder / DESCRIBED).is_file()

    def open(self, folder: Path, threads: int | None = None) -> Decoder | Encoder:
        self.require()
        try:
            described = json.loads((folder / DESCRIBED).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder / DESCRIBED} cannot be read ({error})") from None
        graph = _Graph(folder / FILE, threads)
        if described["task"] != "causal-lm":
            return LiteRtEncoder(graph)
        return LiteRtDecoder(graph, int(described["context"]))

    def read_back(self, folder: Path) -> Mapping[str, StoredCodes]:
        self.require()
        from ai_edge_litert import schema_py_generated as schema

        model = schema.Model.GetRootAs((folder / FILE).read_bytes(), 0)
        graph = model.Subgraphs(0)
        found: dict[str, StoredCodes] = {}
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            quantized = tensor.Quantization()
            if quantized is not None and quantized.ScaleLength():
                data = model.Buffers(tensor.Buffer()).DataAsNumpy()
                four = tensor.Type() == schema.TensorType.INT4
                found[tensor.Name().decode()] = _stored(tensor, quantized, data, four)
        return found

    def version(self) -> str:
        return f"ai-edge-litert {version('ai-edge-litert')}"


def _stored(tensor: Any, quantized: Any, data: Any, four: bool) -> StoredCodes:
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
    return StoredCodes(codes.reshape(rows, width), scales, width)


class _Graph:
    """An interpreter, told anew how long its row is where that changed."""

    def __init__(self, path: Path, threads: int | None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        try:
            self._interpreter = Interpreter(str(path), num_threads=threads)
            inputs = self._interpreter.get_input_details()
            self.inputs = {each["name"]: each["index"] for each in inputs}
            outputs = self._interpreter.get_output_details()
            self.outputs = {each["name"]: each["index"] for each in outputs}
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

    def tensor(self, index: int) -> Any:
        """The numbers of a tensor where they are; not to be kept over a run."""
        return self._interpreter.tensor(index)()

    def run(self, **given: Any) -> Floats:
        """The first output, with these inputs."""
        for name, value in given.items():
            self._interpreter.set_tensor(self.inputs[name], value.astype(np.int32))
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self.outputs["logits"])


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
        for name in graph.inputs:
            if name.startswith("past."):
                view = graph.tensor(graph.inputs[name])
                if start:
                    np.copyto(view, self._past[name])
                else:
                    view.fill(0)
        found = graph.run(input_ids=np.array([ids]), positions=np.arange(start, start + count))
        for name in graph.inputs:
            if name.startswith("past."):
                present = graph.tensor(graph.outputs[name.replace("past.", "present.")])
                if name in self._past:
                    np.copyto(self._past[name], present)
                else:
                    self._past[name] = present.copy()
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
            found.append(self._graph.run(input_ids=row[None], attention_mask=shown[None]))
        return np.concatenate(found)
