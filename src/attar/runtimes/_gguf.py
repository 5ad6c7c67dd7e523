"""What a GGUF file calls a model's parts, and its codes read with gguf's own reader.

llama.cpp turns neighbouring rows of a head together where the model in transformers turns the
two halves of a head; files of its `llama` architecture hold the rows of queries and keys in
that other order.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attar.errors import MissingPackage
from attar.runtimes.runtime import StoredCodes


@dataclass(frozen=True)
class _Names:
    """Modules by their name in the file: outside of blocks, and inside of one."""

    blocks: str
    outside: Mapping[str, str]
    inside: Mapping[str, str]


_DECODER = _Names(
    "model.layers",
    {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
    {
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
    },
)
_ENCODER = _Names(
    "encoder.layer",
    {
        "token_embd": "embeddings.word_embeddings",
        "position_embd": "embeddings.position_embeddings",
        "token_types": "embeddings.token_type_embeddings",
        "token_embd_norm": "embeddings.LayerNorm",
    },
    {
        "attn_q": "attention.self.query",
        "attn_k": "attention.self.key",
        "attn_v": "attention.self.value",
        "attn_output": "attention.output.dense",
        "attn_output_norm": "attention.output.LayerNorm",
        "ffn_up": "intermediate.dense",
        "ffn_down": "output.dense",
        "layer_output_norm": "output.LayerNorm",
    },
)
_HEADER = 1 << 16  # bytes within which a file tells its context
_NUMBERS = ("context_length", "vocab_size")
_WHOLE = struct.pack("<I", 4)  # the type of a whole number of four bytes
_ARCHITECTURE = b"general.architecture" + struct.pack("<I", 8)  # and that of a text
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)")


def gguf_of(path: Path) -> Path | None:
    """The GGUF file that is named, or the one in a folder."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    found = sorted(path.glob("*.gguf"))
    return found[0] if len(found) == 1 else None


def header_numbers(path: Path, names: Sequence[str] = _NUMBERS) -> dict[str, int]:
    """Numbers that a file tells, by the ends of their keys; those that it does not are left out.

    By default the context that it promises, and the rows of its vocabulary. Read from the
    beginning of the header: all of it holds every token as an entry of its own.
    """
    begins = _begins(path)
    found = {name: _number(begins, f".{name}".encode()) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEADER)


def _number(begins: bytes, key: bytes) -> int | None:
    """What follows a key and the type of a whole number."""
    at = begins.find(key + _WHOLE)
    if at < 0:
        return None
    (value,) = struct.unpack_from("<I", begins, at + len(key + _WHOLE))
    return value


def encodes(path: Path) -> bool:
    """Whether a file is an encoder's, as BERT and its kin, by the architecture in its header."""
    begins = _begins(path)
    at = begins.find(_ARCHITECTURE) + len(_ARCHITECTURE)
    if at < len(_ARCHITECTURE) or len(begins) < at + 8:
        return False
    (size,) = struct.unpack_from("<Q", begins, at)
    return b"bert" in begins[at + 8 : at + 8 + size]


def gguf_name(name: str, kind: str) -> str:
    """The name in a file of an architecture of a module, without `.weight` or `.bias`."""
    names = _names(kind)
    match = re.fullmatch(rf"{re.escape(names.blocks)}\.(\d+)\.(.+)", name)
    table, part = (names.outside, name) if match is None else (names.inside, match[2])
    short = next(short for short, long in table.items() if long == part)
    return short if match is None else f"blk.{match[1]}.{short}"


def module_name(name: str, kind: str) -> str:
    """The module of the model that a name in a file of an architecture stands for."""
    names, match = _names(kind), _BLOCK.fullmatch(name)
    if match is None:
        return names.outside[name]
    return f"{names.blocks}.{match[1]}.{names.inside[match[2]]}"


def _names(kind: str) -> _Names:
    return _ENCODER if "bert" in kind else _DECODER


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
    architecture = reader.fields["general.architecture"].contents()
    heads = _heads(reader, architecture)
    found: dict[str, StoredCodes] = {}
    for tensor in reader.tensors:
        kind = GGMLQuantizationType(tensor.tensor_type).name
        if kind not in _READERS:
            continue
        codes = _READERS[kind](np.asarray(tensor.data), tensor.tensor_type)
        short = tensor.name.removesuffix(".weight")
        count = heads.get(short.rpartition(".")[2])
        found[module_name(short, architecture)] = (
            codes if count is None else _turned_back(codes, count)
        )
    return found


def _reader(path: Path) -> Any:
    import gguf

    from attar.models.headers import quick_gguf

    with quick_gguf():
        return gguf.GGUFReader(path)


def _heads(reader: Any, kind: str) -> Mapping[str, int]:
    """Heads of the tensors whose rows are turned."""
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
