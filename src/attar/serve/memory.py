"""What a model takes of the budget: its weights, and the keys and values of its answers.

Counted before anything loads, from the config or the header: a cache grows as answers do, and a
server that had room for the weights alone would run out of memory under load. What an encoder
needs while it computes is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.serve.settings import Settings, Source

if TYPE_CHECKING:
    from attar.serve.locating import Place

COUNTED = "weights, and keys and values of all answers at their longest"
SLOTS = 16  # answers at once of an engine that batches by itself: each has a cache of its own
TORCH = "torch"
_BATCH_THEMSELVES = {"llama-cpp"}
_WIDTHS = {"llama-cpp": 2, "openvino": 2}  # bytes of a number in a cache; OpenVINO may take one
_FLOATS = {"bfloat16": 2, "float16": 2}
_FEWEST = 256  # columns of PyTorch's cache, which doubles when it is full
_NAMES = {  # in configs of transformers; GPT-2 has names of its own
    "layers": ("num_hidden_layers", "n_layer"),
    "queries": ("num_attention_heads", "n_head"),
    "keys": ("num_key_value_heads",),
    "head": ("head_dim",),
    "hidden": ("hidden_size", "n_embd"),
    "places": ("max_position_embeddings", "n_positions"),
}
_GGUF = {
    "layers": "block_count",
    "queries": "attention.head_count",
    "keys": "attention.head_count_kv",
    "head": "attention.key_length",
    "hidden": "embedding_length",
    "places": "context_length",
}


@dataclass(frozen=True)
class Footprint:
    """Bytes of weights, and of keys and values when `batch` answers are as long as they may be."""

    weights: int
    cache: int
    batch: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.weights + self.cache


def footprint(place: Place, source: Source, settings: Settings) -> Footprint:
    """What a model will take; answers at once are halved until it fits the budget alone."""
    batch, text = settings.limits.batch, text_bytes(place, source, settings)
    while True:
        found = Footprint(place.size, text * caches(place.engine, batch), batch)
        if batch == 1 or settings.memory is None or found.total <= settings.memory:
            return found
        batch //= 2


def caches(engine: str, batch: int) -> int:
    """How many texts an engine has a cache for, when it may write so many answers at once."""
    if engine == TORCH:
        return _doubled(1, batch)
    return min(batch, SLOTS) if engine in _BATCH_THEMSELVES else 1


def text_bytes(place: Place, source: Source, settings: Settings) -> int:
    """Keys and values of one text that is as long as it may be; 0 of what is no decoder.

    Of blocks that differ in their heads, as the config says that all are: no less than they take.
    """
    told = _told(place)
    if not told or not _decodes(place, source):
        return 0
    length = min(settings.limits.context, told.get("places") or settings.limits.context)
    queries = told["queries"]
    head = told.get("head") or told["hidden"] // queries
    if place.engine == TORCH:
        length = _doubled(_FEWEST, length)
    width = _width(place)
    return 2 * told["layers"] * (told.get("keys") or queries) * head * length * width


def _doubled(least: int, wanted: int) -> int:
    while least < wanted:
        least *= 2
    return least


def _told(place: Place) -> dict[str, int]:
    """Layers, heads and widths; empty where they are not all told."""
    gguf = _gguf(place)
    if gguf is not None:
        from attar.runtimes._gguf import header_numbers

        numbers = header_numbers(gguf, tuple(_GGUF.values()))
        found = {name: numbers[key] for name, key in _GGUF.items() if key in numbers}
    else:
        config = _config(place)
        found = {
            name: int(config[key])
            for name, keys in _NAMES.items()
            for key in keys
            if isinstance(config.get(key), int)
        }
    return found if {"layers", "queries", "hidden"} <= found.keys() else {}


def _decodes(place: Place, source: Source) -> bool:
    if source.task is not None:
        return source.task == "causal-lm"
    gguf = _gguf(place)
    if gguf is not None:
        from attar.runtimes._gguf import encodes

        return not encodes(gguf)
    kinds = _config(place).get("architectures") or ()
    return any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds)


def _width(place: Place) -> int:
    if place.engine != TORCH:
        return _WIDTHS.get(place.engine, 4)
    if place.dtype == "float32":
        return 4
    config = {} if _gguf(place) is not None else _config(place)
    return _FLOATS.get(config.get("dtype") or config.get("torch_dtype") or "", 4)


def _gguf(place: Place) -> Path | None:
    if place.files is not None:
        return place.files.gguf
    from attar.runtimes._gguf import gguf_of

    return gguf_of(place.folder)


def _config(place: Place) -> dict[str, Any]:
    from attar.models.source import Files, read_config

    there = (place.folder / "config.json").is_file()
    return read_config(Files(place.folder)) if there else {}
