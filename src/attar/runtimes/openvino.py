"""OpenVINO: encoders and language models in its own format."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import ModelError
from attar.runtimes._lengths import by_length
from attar.runtimes._writing import Following, LogitsDecoder, logprobs_of
from attar.runtimes.runtime import Decoder, Encoder, Ends, Engine, Floats, Ids, StoredCodes

FILE = "openvino_model.xml"
TOKENIZER = "openvino_tokenizer.xml"
SETTINGS: dict[str, str] = {}  # of the plugin, where its own are not wanted
_ENCODE = """
import json, sys
from openvino_genai import Tokenizer

found = Tokenizer(sys.argv[1]).encode(json.load(sys.stdin), add_special_tokens=False)
print(json.dumps(found.input_ids.data[0].tolist()), flush=True)
"""
_CODES = ("i4", "u4", "i8", "u8")
_MOVING = ("Reshape", "Transpose")


class OpenVino(Engine):
    """Runs `openvino_model.xml` on the processor."""

    name = "openvino"
    extra = "openvino"
    modules = ("openvino",)

    def holds(self, folder: Path) -> bool:
        return (folder / FILE).is_file()

    def open(self, folder: Path, threads: int | None = None) -> Decoder | Encoder:
        self.require()
        model = _read(folder)
        cached = any(item.any_name == "beam_idx" for item in model.inputs)
        compiled = _compiled(model, folder, cached, threads)
        if cached:
            return OvDecoder(compiled, folder, _context(folder))
        return OvEncoder(compiled, folder)

    def read_back(self, folder: Path) -> Mapping[str, StoredCodes]:
        self.require()
        model = _read(folder)  # nodes forget who reads them when it is gone
        constants = {
            node.get_friendly_name(): node
            for node in model.get_ops()
            if node.get_type_name() == "Constant"
        }
        found: dict[str, StoredCodes] = {}
        for name, node in constants.items():
            if f"{name}/scales" in constants:
                found[name] = _stored(name, node, constants)
        return found

    def version(self) -> str:
        import openvino

        return f"openvino {openvino.__version__.partition('-')[0]}"


def _read(folder: Path) -> Any:
    import openvino

    try:
        return openvino.Core().read_model(folder / FILE)
    except Exception as error:  # it raises RuntimeError for all
        raise ModelError(
            f"OpenVINO cannot read {folder / FILE}: {_said(error)}. Export it again"
        ) from None


def _compiled(model: Any, folder: Path, cached: bool, threads: int | None) -> Any:
    import openvino

    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **SETTINGS}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        return openvino.Core().compile_model(model, "CPU", settings)
    except Exception as error:
        raise ModelError(f"OpenVINO cannot compile {folder}: {_said(error)}") from None


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _context(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return int(config["max_position_embeddings"])


class _Texts:
    """The tokenizer beside a graph, as openvino-genai reads texts with it.

    In a process of its own: where it was in one that runs graphs too, that one's end crashes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def tokens(self, text: str) -> list[int] | None:
        """A text's tokens; None where there is no such tokenizer, or no openvino-genai."""
        if not (self._folder / TOKENIZER).is_file() or find_spec("openvino_genai") is None:
            return None
        command = [sys.executable, "-c", _ENCODE, str(self._folder)]
        done = subprocess.run(command, input=json.dumps(text), capture_output=True, text=True)
        try:
            return json.loads(done.stdout)
        except ValueError:
            said = done.stderr.strip().rpartition("\n")[2]
            raise ModelError(
                f"openvino-genai cannot read {self._folder / TOKENIZER}: {said}. Export it again"
            ) from None


class OvDecoder(LogitsDecoder):
    """A language model, its keys and values states of the engine's."""

    engine = "openvino"

    def __init__(self, compiled: Any, folder: Path, context: int) -> None:
        self._compiled: Any = compiled
        self._texts = _Texts(folder)
        self.context = context

    def tokens(self, text: str) -> list[int] | None:
        return self._texts.tokens(text)

    def close(self) -> None:
        self._compiled = None

    def logprobs(self, ids: Sequence[int]) -> Floats:
        return logprobs_of(_Text(self._compiled).run, ids)

    def begin(self, length: int) -> Following:
        text = _Text(self._compiled)
        return lambda ids: text.run(ids)[-1]


class _Text:
    """One text that is being written, in a request of its own."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._done = 0

    def run(self, ids: Sequence[int]) -> Floats:
        """Logits after each of these tokens, [len(ids), vocabulary]."""
        start, self._done = self._done, self._done + len(ids)
        given = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, self._done), np.int64),
            "position_ids": np.arange(start, self._done)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return self._request.infer(given)[0][0].copy()


class OvEncoder(Encoder):
    """A classifier, masked language model, or plain encoder."""

    engine = "openvino"

    def __init__(self, compiled: Any, folder: Path) -> None:
        self._compiled: Any = compiled
        self._texts = _Texts(folder)

    def tokens(self, text: str) -> list[int] | None:
        return self._texts.tokens(text)

    def close(self) -> None:
        self._compiled = None

    def run(self, ids: Ids, mask: Ids) -> Floats:
        return by_length(self._together, ids, mask)

    def _together(self, ids: Ids, mask: Ids) -> Floats:
        return self._compiled({"input_ids": ids, "attention_mask": mask})[0]


def _stored(name: str, node: Any, constants: Mapping[str, Any]) -> StoredCodes:
    """A constant's codes with the scales, and zero points, that are named after it."""
    codes = _values(node)
    scales = np.array(constants[f"{name}/scales"].data, np.float32)
    zeros = constants.get(f"{name}/zeros")
    rows = codes.shape[0]
    width = codes.size // rows
    kept = None if zeros is None else _values(zeros).reshape(rows, -1)
    group = width // (scales.size // rows)
    products = _products(node)
    inputs = _common(_ends(_before(product.input_value(0))) for product in products)
    outputs = _common(_ends(_after(product)) for product in products)
    return StoredCodes(
        codes.reshape(rows, width), scales.reshape(rows, -1), group, kept, None, inputs, outputs
    )


def _products(node: Any) -> list[Any]:
    """The products of matrices that a constant goes into; a table's look-up is none."""
    if node.get_type_name() == "MatMul":
        return [node]
    if node.get_type_name() == "Gather":
        return []
    return [product for reader in _readers(node) for product in _products(reader)]


def _readers(node: Any) -> list[Any]:
    return [reader.get_node() for reader in node.output(0).get_target_inputs()]


def _before(value: Any) -> Any:
    """What a product is given, before it was moved about."""
    node = value.get_node()
    while node.get_type_name() in _MOVING:
        node = node.input_value(0).get_node()
    return node


def _after(product: Any) -> Any:
    """What becomes of a product and its bias, if that is one thing."""
    readers = _readers(product)
    if len(readers) == 1 and readers[0].get_type_name() == "Add":
        readers = _readers(readers[0])
    return readers[0] if len(readers) == 1 else None


def _ends(node: Any) -> Ends | None:
    """The ends of the numbers that something is rounded to, where it is."""
    if node is None or node.get_type_name() != "FakeQuantize":
        return None
    low, high = (float(node.input_value(place).get_node().data.item()) for place in (3, 4))
    return low, high


def _common(found: Iterable[Ends | None]) -> Ends | None:
    each = set(found)
    return each.pop() if len(each) == 1 else None


def _values(node: Any) -> Any:
    """Whole numbers, of 4 bits too."""
    kind, shape = node.get_element_type().to_string(), list(node.get_output_shape(0))
    if kind in ("i8", "u8"):
        return np.array(node.data).astype(np.int16)
    packed = np.frombuffer(node.data.tobytes(), np.uint8)
    codes = np.stack((packed & 15, packed >> 4), -1).reshape(-1)[: int(np.prod(shape))]
    codes = codes.astype(np.int16).reshape(shape)
    return np.where(codes > 7, codes - 16, codes) if kind == "i4" else codes
