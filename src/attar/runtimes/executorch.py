"""ExecuTorch: programs for phones, run here by the same runtime."""

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

FILE = "model.pte"


class ExecuTorch(Engine):
    """Runs `model.pte` on the processor, a row at a time."""

    name = "executorch"
    extra = "executorch"
    modules = ("executorch",)

    def holds(self, folder: Path) -> bool:
        return (folder / FILE).is_file() and (folder / DESCRIBED).is_file()

    def open(self, folder: Path, threads: int | None = None) -> Decoder | Encoder:
        self.require()
        known = described(folder)
        method = _method(folder / FILE, threads)
        if known["task"] != "causal-lm":
            return EtEncoder(method)
        return EtDecoder(method, int(known["context"]), int(known["at_once"]))

    def read_back(self, folder: Path) -> Mapping[str, StoredCodes]:
        self.require()
        program: Any = import_module("executorch.exir._serialize._program")
        file = program.deserialize_pte_binary((folder / FILE).read_bytes())
        found: dict[str, StoredCodes] = {}
        for note in described(folder)["codes"]:
            codes = _looked_up(note, file) if note["kind"] == "look-up" else _linear(note, file)
            name = note["name"]
            if name in found and codes.difference(found[name]):
                name = f"{name}, as a head"  # is reported, since no model has this
            found[name] = codes
        return found

    def version(self) -> str:
        return f"executorch {version('executorch')}"


def _method(path: Path, threads: int | None) -> Any:
    import_module("executorch.kernels.quantized")  # registers kernels
    library: Any = import_module("executorch.extension.pybindings.portable_lib")
    runtime: Any = import_module("executorch.runtime")
    if threads:
        library._unsafe_reset_threadpool(threads)
    try:
        return _Program(runtime.Runtime.get().load_program(path))
    except RuntimeError as error:
        said = str(error).strip().partition("\n")[0]
        raise ModelError(f"ExecuTorch cannot open {path}: {said}. Export it again") from None


class _Program:
    """A loaded program and its one method."""

    def __init__(self, program: Any) -> None:
        self._program = program  # holds the memory that the method reads
        self._method = program.load_method("forward")

    def __call__(self, *inputs: Any) -> Floats:
        import torch

        given = [torch.from_numpy(np.ascontiguousarray(value)) for value in inputs]
        return self._method.execute(given)[0].numpy()


class EtDecoder(OneText):
    """A language model, with the keys and values of one text at a time in the program."""

    engine = "executorch"

    def __init__(self, program: Any, context: int, at_once: int) -> None:
        super().__init__(context)
        self.chunk = at_once
        self._program: Any = program

    def close(self) -> None:
        self._program = None

    def run(self, ids: Sequence[int], start: int) -> Floats:
        return self._program(np.array([ids], np.int64), np.arange(start, start + len(ids)))[0]


class EtEncoder(Encoder):
    """A classifier, masked language model, or plain encoder."""

    engine = "executorch"

    def __init__(self, program: Any) -> None:
        self._program: Any = program

    def close(self) -> None:
        self._program = None

    def run(self, ids: Ids, mask: Ids) -> Floats:
        rows = zip(ids, mask, strict=True)
        return np.concatenate([self._program(row[None], shown[None]) for row, shown in rows])


def _linear(note: Mapping[str, Any], file: Any) -> StoredCodes:
    """A linear's codes, of XNNPACK's own data in the file."""
    rows, width = note["rows"], note["width"]
    codes = _data(file, note["codes"])
    if note["bits"] == 8:
        codes = codes.view(np.int8).reshape(rows, width).astype(np.int16)
    else:
        pairs = np.stack((codes & 15, codes >> 4), -1).reshape(rows, -1)[:, :width]
        codes = pairs.astype(np.int16) - 8
    kept = _data(file, note["scales"])
    if note["group"] == width:
        scales = kept.view(np.float32).reshape(rows, 1).copy()
    else:
        scales = (kept.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(rows, -1)
    scales[note["signs"]] *= -1
    return StoredCodes(codes, scales, note["group"])


def _data(file: Any, key: str) -> Any:
    named = file.named_data
    entry = named.pte_data.get(key) if named else None
    if entry is None:
        raise ModelError(f"{FILE} has no data called {key}. Export it again")
    return np.frombuffer(bytes(named.buffers[entry.buffer_index]), np.uint8)


def _looked_up(note: Mapping[str, Any], file: Any) -> StoredCodes:
    """A table's codes, from the call that looks rows up in it."""
    plan = file.program.execution_plan[0]
    operators = [operator.name for operator in plan.operators]
    place = operators.index("quantized_decomposed::embedding_byte")
    calls = (step.instr_args for chain in plan.chains for step in chain.instructions)
    call = next(call for call in calls if getattr(call, "op_index", None) == place)
    codes, scales, zeros = (_tensor(file, plan.values[index].val) for index in call.args[:3])
    kept = None if zeros is None else zeros.astype(np.int16)
    return StoredCodes(codes.astype(np.int16), scales, note["group"], kept)


def _tensor(file: Any, value: Any) -> Any:
    """A constant of the program; None where there is none."""
    if not hasattr(value, "data_buffer_idx"):
        return None
    data = bytes(file.program.constant_buffer[value.data_buffer_idx].storage)
    dtype = {0: np.uint8, 1: np.int8, 6: np.float32}[int(value.scalar_type)]
    count = int(np.prod(value.sizes))  # what follows fills up the last bytes
    return np.frombuffer(data, dtype, count).reshape(value.sizes)
