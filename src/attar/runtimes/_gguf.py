"""What a GGUF file calls a decoder's parts, and its codes read with gguf's own reader.

llama.cpp turns neighbouring rows of a head together where the model in transformers turns the
two halves of a head; files of its `llama` architecture hold the rows of queries and keys in
that other order.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attar.errors import MissingPackage
from attar.runtimes.runtime import StoredCodes

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEADER = 1 << 16  # bytes within which a file tells its context
_NUMBERS = ("context_length", "vocab_size")
_WHOLE = struct.pack("<I", 4)  # the type of a whole number of four bytes
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)")


def gguf_of(folder: Path) -> Path | None:
    """The one GGUF file in a folder."""
    found = sorted(folder.glob("*.gguf"))
    return found[0] if len(found) == 1 else None


def header_numbers(path: Path, names: Sequence[str] = _NUMBERS) -> dict[str, int]:
    """Numbers that a file tells, by the ends of their keys; those that it does not are left out.

    By default the context that it promises, and the rows of its vocabulary. Read from the
    beginning of the header: all of it holds every token as an entry of its own.
    """
    with path.open("rb") as file:
        begins = file.read(_HEADER)
    found = {name: _number(begins, f".{name}".encode()) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _number(begins: bytes, key: bytes) -> int | None:
    """What follows a key and the type of a whole number."""
    at = begins.find(key + _WHOLE)
    if at < 0:
        return None
    (value,) = struct.unpack_from("<I", begins, at + len(key + _WHOLE))
    return value


def gguf_name(name: str) -> str:
    """The name in the file of a module of the model, without `.weight` or `.bias`."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    table = _OUTSIDE if match is None else _INSIDE
    part = name if match is None else match[2]
    short = next(short for short, long in table.items() if long == part)
    return short if match is None else f"blk.{match[1]}.{short}"


def module_name(name: str) -> str:
    """The module of the model that a name in the file stands for."""
    match = _BLOCK.fullmatch(name)
    return _OUTSIDE[name] if match is None else f"model.layers.{match[1]}.{_INSIDE[match[2]]}"


def turned(rows: int, heads: int) -> NDArray[np.int64]:
    """Which row of a module each row in the file is, of queries or keys with so many heads."""
    halves = np.arange(rows).reshape(heads, 2, rows // heads // 2)
    return halves.swapaxes(1, 2).reshape(-1)


def read_gguf(path: Path) -> dict[str, StoredCodes]:
    """The codes of every tensor of a type that has some.

    They are told from what gguf's own `dequantize` makes of the blocks, so that a block laid
    out wrongly does not come back right.
    """
    try:
        from gguf import GGMLQuantizationType
    except ImportError:
        raise MissingPackage(f"reading {path.name}", "pip install 'attar[gguf]'") from None
    reader = _reader(path)
    heads = _heads(reader)
    found: dict[str, StoredCodes] = {}
    for tensor in reader.tensors:
        kind = GGMLQuantizationType(tensor.tensor_type).name
        if kind not in _READERS:
            continue
        codes = _READERS[kind](np.asarray(tensor.data), tensor.tensor_type)
        short = tensor.name.removesuffix(".weight")
        count = heads.get(short.rpartition(".")[2])
        found[module_name(short)] = codes if count is None else _turned_back(codes, count)
    return found


def _reader(path: Path) -> Any:
    import gguf

    from attar.models.headers import quick_gguf

    with quick_gguf():
        return gguf.GGUFReader(path)


def _heads(reader: Any) -> Mapping[str, int]:
    """Heads of the tensors whose rows are turned."""
    kind = reader.fields["general.architecture"].contents()
    if kind != "llama":
        return {}
    heads = {"attn_q": "head_count", "attn_k": "head_count_kv"}
    return {
        name: int(reader.fields[f"{kind}.attention.{field}"].contents())
        for name, field in heads.items()
    }


def _turned_back(codes: StoredCodes, heads: int) -> StoredCodes:
    back = np.argsort(turned(len(codes.codes), heads))
    minima = None if codes.minima is None else codes.minima[back]
    return StoredCodes(codes.codes[back], codes.scales[back], codes.group, minima=minima)


def _read_scaled(raw: NDArray[np.uint8], kind: Any, size: int) -> StoredCodes:
    """Blocks that begin with a float16 scale, symmetric."""
    scales = _halves(raw, size, 0)
    weights = _dequantized(raw, kind)
    codes = np.rint(weights / np.repeat(scales, 32, 1)).astype(np.int16)
    return StoredCodes(codes, scales, 32)


def _read_q4_0(raw: NDArray[np.uint8], kind: Any) -> StoredCodes:
    return _read_scaled(raw, kind, 18)


def _read_q8_0(raw: NDArray[np.uint8], kind: Any) -> StoredCodes:
    return _read_scaled(raw, kind, 34)


def _read_q4_1(raw: NDArray[np.uint8], kind: Any) -> StoredCodes:
    scales, minima = _halves(raw, 20, 0), _halves(raw, 20, 2)
    rest = _dequantized(raw, kind) - np.repeat(minima, 32, 1)
    codes = np.rint(rest / np.repeat(scales, 32, 1)).astype(np.int16)
    return StoredCodes(codes, scales, 32, minima=minima)


def _read_mxfp4(raw: NDArray[np.uint8], kind: Any) -> StoredCodes:
    powers = raw.reshape(len(raw), -1, 17)[..., 0].astype(np.float32) - 127
    scales = np.exp2(powers).astype(np.float32)
    levels = _dequantized(raw, kind) / np.repeat(scales, 32, 1)
    sizes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    codes = np.abs(np.abs(levels)[..., None] - sizes).argmin(-1) + 8 * np.signbit(levels)
    return StoredCodes(codes.astype(np.int16), scales, 32)


def _halves(raw: NDArray[np.uint8], size: int, start: int) -> NDArray[np.float32]:
    blocks = raw.reshape(len(raw), -1, size)[..., start : start + 2]
    return np.ascontiguousarray(blocks).view(np.float16)[..., 0].astype(np.float32)


def _dequantized(raw: NDArray[np.uint8], kind: Any) -> NDArray[np.float32]:
    from gguf.quants import dequantize

    return dequantize(raw, kind)


_READERS = {
    "Q4_0": _read_q4_0,
    "Q4_1": _read_q4_1,
    "Q8_0": _read_q8_0,
    "MXFP4": _read_mxfp4,
}
