"""ONNX Runtime: encoders and language models in ONNX."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import ModelError
from attar.runtimes._lengths import by_length
from attar.runtimes._writing import Following, LogitsDecoder, logprobs_of
from attar.runtimes.runtime import (
    Decoder,
    Encoder,
    Ends,
    Engine,
    Floats,
    Ids,
    StoredCodes,
    ends_of,
)

FILE = "model.onnx"
_TABLES = "attar.tables"
_MULTIPLIES = ("MatMul", "MatMulNBits")


class OnnxRuntime(Engine):
    """Runs `model.onnx` on the processor."""

    name = "onnxruntime"
    extra = "onnx"
    modules = ("onnx", "onnxruntime")

    def holds(self, folder: Path) -> bool:
        return (folder / FILE).is_file()

    def open(self, folder: Path, threads: int | None = None) -> Decoder | Encoder:
        self.require()
        session = _session(folder / FILE, threads)
        cached = any(item.name.startswith("past_key_values") for item in session.get_inputs())
        return OrtDecoder(session, context_of(folder)) if cached else OrtEncoder(session)

    def read_back(self, folder: Path) -> Mapping[str, StoredCodes]:
        self.require()
        import onnx

        model = onnx.load(folder / FILE)
        properties = {item.key: item.value for item in model.metadata_props}
        arrays = {tensor.name: tensor for tensor in model.graph.initializer}
        found: dict[str, StoredCodes] = {}
        rounded = _rounded(model.graph, arrays)
        for table in json.loads(properties.get(_TABLES, "[]")):
            inputs, outputs = rounded.get(f"{table['array']}.codes", (None, {}))
            found |= _unpacked(table, arrays, inputs, outputs)
        return found

    def version(self) -> str:
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"


def _session(path: Path, threads: int | None) -> Any:
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes, of many kinds
        said = str(error).strip().partition("\n")[0]
        raise ModelError(f"ONNX Runtime cannot open {path}: {said}. Export it again") from None


def context_of(folder: Path) -> int:
    """How many tokens fit the language model in a folder."""
    config = json.loads((folder / "genai_config.json").read_text("utf-8"))
    return int(config["model"]["context_length"])


class OrtDecoder(LogitsDecoder):
    """A language model; keys and values stay where they are written."""

    engine = "onnxruntime"

    def __init__(self, session: Any, context: int) -> None:
        self._session: Any = session
        self.context = context

    def close(self) -> None:
        self._session = None

    def logprobs(self, ids: Sequence[int]) -> Floats:
        return logprobs_of(_Cache(self._session, len(ids)).run, ids)

    def begin(self, length: int) -> Following:
        cache = _Cache(self._session, length)
        return lambda ids: cache.run(ids)[-1]


class _Cache:
    """One text that is being written: its keys and values, in place for `length` tokens."""

    def __init__(self, session: Any, length: int) -> None:
        from onnxruntime import OrtValue

        self._session, self._done = session, 0
        self._binding = session.io_binding()
        for item in session.get_inputs():
            if item.name.startswith("past_key_values"):
                shape = (1, item.shape[1], length, item.shape[3])
                value = OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                self._binding.bind_ortvalue_input(item.name, value)
                present = item.name.replace("past_key_values", "present")
                self._binding.bind_ortvalue_output(present, value)
        self._place = [item.name for item in session.get_outputs()].index("logits")

    def run(self, ids: Sequence[int]) -> Floats:
        """Logits after each of these tokens, [len(ids), vocabulary]."""
        self._done += len(ids)
        self._binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        self._binding.bind_cpu_input("attention_mask", np.ones((1, self._done), np.int64))
        self._binding.bind_output("logits")
        self._session.run_with_iobinding(self._binding)
        return self._binding.get_outputs()[self._place].numpy()[0]


class OrtEncoder(Encoder):
    """A classifier, masked language model, or plain encoder."""

    engine = "onnxruntime"

    def __init__(self, session: Any) -> None:
        self._session: Any = session

    def close(self) -> None:
        self._session = None

    def run(self, ids: Ids, mask: Ids) -> Floats:
        return by_length(self._together, ids, mask)

    def _together(self, ids: Ids, mask: Ids) -> Floats:
        return self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def _rounded(
    graph: Any, arrays: Mapping[str, Any]
) -> dict[str, tuple[Ends | None, dict[int, Ends]]]:
    """What products are given and put out rounded, by the codes of their matrices.

    Of linears that are one product, outputs by their place.
    """
    from onnx.numpy_helper import to_array

    made = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def only(name: str, kind: str) -> Any:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and found[0].op_type == kind else None

    def ends(node: Any) -> Ends:
        scale, zero = (to_array(arrays[name]).item() for name in node.input[1:])
        return ends_of(scale, zero)

    found: dict[str, tuple[Ends | None, dict[int, Ends]]] = {}
    for node in graph.node:
        if node.op_type not in _MULTIPLIES:
            continue
        grid = made.get(node.input[0])
        static = grid is not None and grid.op_type == "DequantizeLinear"
        codes = made[node.input[1]].input[0] if node.input[1] in made else node.input[1]
        biased = only(node.output[0], "Add")
        whole = node.output[0] if biased is None else biased.output[0]
        parts = only(whole, "Split")
        places = enumerate([whole] if parts is None else parts.output)
        kept = {at: only(name, "QuantizeLinear") for at, name in places}
        outputs = {at: ends(each) for at, each in kept.items() if each is not None}
        found[codes] = (ends(grid) if static else None, outputs)
    return found


def _unpacked(
    table: Mapping[str, Any],
    arrays: Mapping[str, Any],
    inputs: Ends | None,
    outputs: Mapping[int, Ends],
) -> dict[str, StoredCodes]:
    """The codes of the linears that share one array."""
    from onnx.numpy_helper import to_array

    bits, width, name = table["bits"], table["width"], table["array"]
    codes, scales = to_array(arrays[f"{name}.codes"]), to_array(arrays[f"{name}.scales"])
    zeros = None
    if table["kind"] == "columns":
        codes, scales = codes.T, scales[:, None]
    else:
        codes = _opened(codes.reshape(len(codes), -1), bits)[:, :width].astype(np.int16)
        codes -= 1 << (bits - 1) if table["signed"] else 0
        if f"{name}.zeros" in arrays:
            zeros = _opened(to_array(arrays[f"{name}.zeros"]), bits)[:, : scales.shape[1]]
    found: dict[str, StoredCodes] = {}
    ends = np.cumsum(table["rows"])
    for at, (linear, rows, end) in enumerate(zip(table["names"], table["rows"], ends, strict=True)):
        part = slice(end - rows, end)
        kept = None if zeros is None else zeros[part].astype(np.int16)
        group = table["group"]
        found[linear] = StoredCodes(
            codes[part], scales[part], group, kept, None, inputs, outputs.get(at)
        )
    return found


def _opened(packed: Any, bits: int) -> Any:
    if bits == 8:
        return packed
    return np.stack((packed & 15, packed >> 4), -1).reshape(len(packed), -1)
