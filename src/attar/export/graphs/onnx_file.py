"""An ONNX file that is written node by node, its large arrays straight to a file beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
TABLES = "attar.tables"  # in the file's metadata: which initializers hold whose codes
_SMALL = 1024  # bytes that stay in the graph, where shapes are inferred from them
_PAGE = 4096
_OPSET, _IR = 21, 10


class OnnxFile:
    """Nodes, arrays, inputs and outputs, and at last `model.onnx` and `model.onnx.data`."""

    def __init__(self, folder: Path) -> None:
        import onnx

        self._onnx = onnx
        self._folder = folder
        self._data = (folder / "model.onnx.data").open("wb")
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._arrays: dict[str, Any] = {}
        self.tables: list[dict[str, Any]] = []

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: int | Sequence[str] = 1,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Add a node; its outputs, named after it unless names are given."""
        name = f"{op}_{len(self._nodes)}"
        if isinstance(outputs, int):
            outputs = [name if index == 0 else f"{name}.{index}" for index in range(outputs)]
        make = self._onnx.helper.make_node
        made = make(op, list(inputs), list(outputs), name=name, domain=domain, **attributes)
        self._nodes.append(made)
        return list(outputs)

    def drop(self, output: str) -> None:
        """Take the node back that this is an output of."""
        self._nodes.remove(next(node for node in self._nodes if output in node.output))

    def rename(self, value: str, name: str) -> None:
        """Give a value that nothing reads yet another name."""
        node = next(node for node in self._nodes if value in node.output)
        node.output[list(node.output).index(value)] = name

    def array(self, name: str, value: Any) -> str:
        """Keep an array under this name, once; its name."""
        if name in self._arrays:
            return name
        array = np.ascontiguousarray(value)
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = self._onnx.TensorProto(name=name, data_type=kind, dims=np.shape(value))
        if array.nbytes <= _SMALL:
            tensor.raw_data = array.tobytes()
        else:
            self._outside(tensor, array)
        self._arrays[name] = tensor
        return name

    def _outside(self, tensor: Any, array: Any) -> None:
        self._data.seek(-(-self._data.tell() // _PAGE) * _PAGE)
        place = {"location": "model.onnx.data", "offset": self._data.tell(), "length": array.nbytes}
        self._data.write(memoryview(array).cast("B"))
        tensor.data_location = self._onnx.TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A small array, named after what it holds."""
        array = np.array(value, dtype)
        words = str(array.tolist()).replace(" ", "")
        return self.array(f"{array.dtype.name}:{words}", array)

    def input(self, name: str, kind: str, shape: Sequence[int | str]) -> str:
        """Add an input; its name."""
        self._inputs.append(self._value(name, kind, shape))
        return name

    def output(self, name: str, kind: str, shape: Sequence[int | str]) -> None:
        """Make the value of this name an output."""
        self._outputs.append(self._value(name, kind, shape))

    def _value(self, name: str, kind: str, shape: Sequence[int | str]) -> Any:
        return self._onnx.helper.make_tensor_value_info(
            name, getattr(self._onnx.TensorProto, kind), list(shape)
        )

    def close(self) -> None:
        """Close the file of arrays. Safe to call again."""
        self._data.close()

    def save(self, name: str) -> None:
        """Write the graph, and close the file of arrays."""
        helper = self._onnx.helper
        self.close()
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, list(self._arrays.values())
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR, producer_name="attar"
        )
        if self.tables:
            helper.set_model_props(model, {TABLES: json.dumps(self.tables)})
        (self._folder / "model.onnx").write_bytes(model.SerializeToString())
        if not (self._folder / "model.onnx.data").stat().st_size:
            (self._folder / "model.onnx.data").unlink()
