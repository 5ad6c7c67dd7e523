"""The operations in ONNX, with ONNX Runtime's own operators where it is faster with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attar.export.graphs.graph import Function, Graph, Heads, Norm, Rotary
from attar.export.graphs.nbits import blocks
from attar.export.graphs.onnx_file import MICROSOFT, OnnxFile
from attar.export.graphs.weights import Coded, Dense, weights_of
from attar.layers import LowRank
from attar.models import Model
from attar.ops.activations import InputGrid

_INT32, _INT64 = 6, 7  # numbers of ONNX's types
ACCURACY = 4  # of MatMulNBits: inputs are rounded to 8 bits, block by block, within the kernel


class OnnxGraph(Graph[str]):
    """A model in ONNX; a decoder's as onnxruntime-genai wants it, an encoder's with two inputs."""

    def __init__(self, model: Model, file: OnnxFile) -> None:
        super().__init__(model)
        self.file = file
        shape = ["rows", "length"]
        self._ids = self.file.input("input_ids", "INT64", shape)
        self._decoder = model.task == "causal-lm"
        shown = ["rows", "total"] if self._decoder else shape
        self._mask = self.file.input("attention_mask", "INT64", shown)
        self._lengths = self._counted() if self._decoder else ()
        self._shown = ""  # the mask, as MultiHeadAttention wants it
        self._rounded: dict[Any, str] = {}  # inputs on a static grid
        self._whole: dict[tuple[str, ...], str] = {}  # what several values are parts of

    def _op(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.file.node(op, inputs, domain=domain, **attributes)[0]

    def _counted(self) -> tuple[str, str]:
        """How long each row is, less one, and how long the longest: as GroupQueryAttention asks."""
        op, number = self._op, self.file.constant
        lengths = op("Sub", op("ReduceSum", self._mask, number([1]), keepdims=0), number(1))
        longest = op("Gather", op("Shape", self._mask), number(1), axis=0)
        return op("Cast", lengths, to=_INT32), op("Cast", longest, to=_INT32)

    def ids(self) -> str:
        return self._ids

    def embed(self, ids: str, weights: Coded | Dense) -> str:
        if isinstance(weights, Dense):
            return self._op("Gather", self.file.array(weights.name, weights.weight), ids)
        data, scales, zeros, size = self._stored(weights.name, [weights])
        flat = self._op("Reshape", data, self.file.constant([weights.rows, -1]))
        inputs = [flat, ids, scales] + ([zeros] if zeros else [])
        attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": size}
        found = self._op(
            "GatherBlockQuantized", *inputs, domain=MICROSOFT, bits=weights.bits, **attributes
        )
        if weights.width % size:
            found = self._sliced(found, weights.width)
        return found

    def places(self, weights: Dense, padding: int | None) -> str:
        op, number = self._op, self.file.constant
        table = self.file.array(weights.name, weights.weight)
        if padding is None:
            end = op("Slice", op("Shape", self._ids), number([1]), number([2]))
            return op("Slice", table, number([0]), end, number([0]))
        real = op("Cast", op("Not", op("Equal", self._ids, number(padding))), to=_INT64)
        place = op("Mul", op("CumSum", real, number(1)), real)
        return op("Gather", table, op("Add", place, number(padding)))

    def first(self, x: str) -> str:
        return self._op("Gather", x, self.file.constant(0), axis=1)

    def _sliced(self, x: str, width: int) -> str:
        number = self.file.constant
        return self._op("Slice", x, number([0]), number([width]), number([-1]))

    def _stored(self, name: str, parts: Sequence[Coded]) -> tuple[str, str, str, int]:
        """Names of the codes, scales and zero points ("" for none) of linears in one, kept once."""
        kept = [blocks(part) for part in parts]
        data = self.file.array(f"{name}.codes", np.concatenate([one.data for one in kept]))
        scales = self.file.array(f"{name}.scales", np.concatenate([one.scales for one in kept]))
        zeros = ""
        if parts[0].zeros is not None:
            joined = np.concatenate([one.zeros for one in kept if one.zeros is not None])
            zeros = self.file.array(f"{name}.zeros", joined)
        self._noted("blocks", name, parts, kept[0].size)
        return data, scales, zeros, kept[0].size

    def _noted(self, kind: str, name: str, parts: Sequence[Coded], size: int) -> None:
        """Write down how to find codes again, for who reads the file back."""
        note = {
            "kind": kind,
            "array": name,
            "names": [part.name for part in parts],
            "rows": [part.rows for part in parts],
            "width": parts[0].width,
            "bits": parts[0].bits,
            "signed": parts[0].signed,
            "group": size,
        }
        if note not in self.file.tables:
            self.file.tables.append(note)

    def multiply(self, x: str, weights: Coded | Dense) -> str:
        if isinstance(weights, Coded):
            return self._together(x, [weights])
        if weights.tied:  # the array lies rows first already
            array = self.file.array(weights.name, weights.weight)
            found = self._op("FusedMatMul", x, array, domain=MICROSOFT, transB=1)
        else:
            found = self._op("MatMul", x, self.file.array(weights.name, weights.weight.T))
        if weights.bias is None:
            return found
        return self._op("Add", found, self.file.array(f"{weights.name}.bias", weights.bias))

    def linears(self, x: str, names: Sequence[str]) -> list[str]:
        """Linears on one grid become one, whose inputs are then rounded once."""
        modules: list[Any] = [self.model.module.get_submodule(name) for name in names]
        if len(names) == 1 or any(isinstance(module, LowRank) for module in modules):
            return super().linears(x, names)
        parts = [weights_of(self.model, name) for name in names]
        coded = [part for part in parts if isinstance(part, Coded)]
        if len(coded) < len(parts) or len({part.layout() for part in coded}) > 1:
            found = [self.multiply(x, part) for part in parts]
            return [self.put_out(*made) for made in zip(names, found, strict=True)]
        whole = self._together(x, coded)
        found = self.split(whole, [part.rows for part in coded])
        self._whole[tuple(found)] = whole
        return [self.put_out(*made) for made in zip(names, found, strict=True)]

    def _together(self, x: str, parts: Sequence[Coded]) -> str:
        """Linears on one grid, as one: their outputs one after another."""
        name, bias = "+".join(part.name for part in parts), ""
        if any(part.bias is not None for part in parts):
            biases = [
                np.zeros(part.rows, np.float32) if part.bias is None else part.bias
                for part in parts
            ]
            bias = self.file.array(f"{name}.bias", np.concatenate(biases))
        if parts[0].given is not None:
            x = self.rounded(x, parts[0].given)
        if parts[0].integers:
            found = self._integers(x, name, parts)
            return self._op("Add", found, bias) if bias else found
        data, scales, zeros, size = self._stored(name, parts)
        inputs = [x, data, scales, zeros, "", bias]
        while not inputs[-1]:
            inputs.pop()
        return self._op(
            "MatMulNBits",
            *inputs,
            domain=MICROSOFT,
            K=parts[0].width,
            N=sum(part.rows for part in parts),
            bits=parts[0].bits,
            block_size=size,
            accuracy_level=ACCURACY,
        )

    def _integers(self, x: str, name: str, parts: Sequence[Coded]) -> str:
        """Whole numbers times whole numbers: quantized and dequantized, which the runtime joins."""
        op, array = self._op, self.file.array
        joined = np.concatenate([part.codes for part in parts])
        codes = array(f"{name}.codes", joined.T.astype(np.int8))
        scales = array(f"{name}.scales", np.concatenate([part.scales[:, 0] for part in parts]))
        self._noted("columns", name, parts, parts[0].width)
        weight = op("DequantizeLinear", codes, scales, axis=1)
        return op("MatMul", x, weight)

    def rounded(self, x: str, grid: InputGrid) -> str:
        """The nearest of a grid's 256 numbers, quantized once for all that read them."""
        key = (x, grid)
        if key not in self._rounded:
            constant = self.file.constant
            told = [constant(grid.scale, np.float32), constant(grid.zero, np.uint8)]
            codes = self._op("QuantizeLinear", x, *told)
            self._rounded[key] = self._op("DequantizeLinear", codes, *told)
        return self._rounded[key]

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        number = self.file.constant(list(sizes))
        return self.file.node("Split", [x, number], len(sizes), axis=-1)

    def add(self, x: str, y: str) -> str:
        return self._op("Add", x, y)

    def times(self, x: str, y: str) -> str:
        return self._op("Mul", x, y)

    def scaled(self, x: str, factor: float) -> str:
        return self._op("Mul", x, self.file.constant(factor, np.float32))

    def function(self, x: str, function: Function) -> str:
        if function == "silu":  # the name that ONNX Runtime's own fusion gives it
            return self._op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)
        if function == "gelu_tanh":
            return self._op("FastGelu", x, domain=MICROSOFT)
        if function == "gelu":
            return self._op("Gelu", x, domain=MICROSOFT)
        return self._op({"relu": "Relu", "tanh": "Tanh"}[function], x)

    def _parameters(self, norm: Norm) -> list[str]:
        gain = self.file.array(f"{norm.name}.gain", norm.gain)
        if norm.bias is None:
            return [gain]
        return [gain, self.file.array(f"{norm.name}.bias", norm.bias)]

    def norm(self, x: str, norm: Norm) -> str:
        op = "LayerNormalization" if norm.centered else "SimplifiedLayerNormalization"
        inputs = [x, *self._parameters(norm)]
        return self._op(op, *inputs, axis=-1, epsilon=norm.epsilon, stash_type=1)

    def add_norm(self, x: str, branch: str, norm: Norm) -> tuple[str, str]:
        if norm.centered:  # ONNX Runtime is faster with these two apart
            return super().add_norm(x, branch, norm)
        inputs = [x, branch, *self._parameters(norm)]
        name = f"joined_{norm.name}"
        outputs = [name, "", "", f"{name}.sum"]
        op, epsilon = "SkipSimplifiedLayerNormalization", norm.epsilon
        self.file.node(op, inputs, outputs, MICROSOFT, epsilon=epsilon)
        return name, outputs[-1]

    def norm_heads(self, x: str, norm: Norm, heads: int) -> str:
        number = self.file.constant
        size = len(norm.gain)
        split = self._op("Reshape", x, number([0, 0, heads, size]))
        return self._op("Reshape", self.norm(split, norm), number([0, 0, heads * size]))

    def attend(self, qkv: Sequence[str], heads: Heads) -> str:
        attributes = {"num_heads": heads.queries, "scale": heads.scale}
        self._shown = self._shown or self._op("Cast", self._mask, to=_INT32)
        inputs = [*qkv, "", self._shown]
        return self._op("MultiHeadAttention", *inputs, domain=MICROSOFT, **attributes)

    def attend_before(
        self, qkv: Sequence[str], layer: int, heads: Heads, rotary: Rotary | None
    ) -> str:
        past, present = self._cache(layer, heads)
        whole = self._whole.get(tuple(qkv))
        if whole is not None:
            self.file.drop(qkv[0])
            qkv = [whole, "", ""]
        angles = ["", ""]
        if rotary is not None:
            angles = [
                self.file.array(f"cosines_{rotary.name}", rotary.cosines),
                self.file.array(f"sines_{rotary.name}", rotary.sines),
            ]
        output = f"attention_{layer}"
        self.file.node(
            "GroupQueryAttention",
            [*qkv, *past, *self._lengths, *angles],
            [output, *present],
            MICROSOFT,
            num_heads=heads.queries,
            kv_num_heads=heads.keys,
            scale=heads.scale,
            local_window_size=heads.window or -1,
            softcap=float(heads.cap or 0),
            do_rotary=int(rotary is not None),
            rotary_interleaved=0,
        )
        return output

    def _cache(self, layer: int, heads: Heads) -> tuple[list[str], list[str]]:
        """The keys and values of earlier calls, and those to give to the next."""
        past, present = [], []
        for kind in ("key", "value"):
            name, given = f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}"
            past.append(self.file.input(name, "FLOAT", ["rows", heads.keys, "past", heads.size]))
            self.file.output(given, "FLOAT", ["rows", heads.keys, "total", heads.size])
            present.append(given)
        return past, present

    def result(self, x: str, name: str, shape: Sequence[int | str]) -> None:
        self.file.rename(x, name)
        self.file.output(name, "FLOAT", shape)
