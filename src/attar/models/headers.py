"""Headers of files of weights: whether a file is as long as its own says, and reading GGUF's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import ModelError


def check_safetensors(path: Path) -> None:
    """Raise ModelError where a safetensors file's header is damaged or promises more bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length:
            raise ModelError(
                f"{path} is cut short or no safetensors file: its header alone would take "
                f"{8 + length} bytes, and the file has {size}. Fetch or write it again"
            )
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            ends = [item["data_offsets"][1] for key, item in header.items() if key[:2] != "__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(
                f"the header of {path} is damaged ({error}). Fetch or write it again"
            ) from None
    promised = 8 + length + max(ends, default=0)
    if promised != size:
        what = "is cut short" if size < promised else "has bytes that belong to no tensor"
        raise ModelError(
            f"{path} {what}: its header promises {promised} bytes, and the file has {size}. "
            "Fetch or write it again"
        )


def gguf_trouble(path: Path) -> str | None:
    """What is wrong with a GGUF file that would not load; None where its length is right."""
    from gguf import GGUFReader

    ends: list[int] = []

    class Lengths(GGUFReader):
        """Reads the header alone, and where the last tensor would end."""

        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

            for field in fields:
                *_, dims, kind, offset = field.parts
                block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind[0])]
                bytes_ = int(dims.prod()) // block * size
                ends.append(int(start_offs) + int(offset[0]) + bytes_)

    size = path.stat().st_size
    try:
        Lengths(path)
    except Exception as error:  # the reader trusts the header, and fails in many ways
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return (
            f"the header of {path} is damaged or cut short ({reason}); the file has {size} "
            "bytes. Fetch it again"
        )
    if max(ends, default=0) > size:
        return (
            f"{path} is cut short: its header promises {max(ends)} bytes, and the file has "
            f"{size}. Fetch it again"
        )
    return None


@contextmanager
def quick_gguf() -> Iterator[None]:
    """Let whoever reads a GGUF file meanwhile do so in a third of the time.

    Its header holds every token as an entry of its own, and each slice of a numpy memmap, which
    the package's reader takes of the file, costs far more than one of a plain array.
    """
    import gguf

    own = gguf.GGUFReader

    class Reader(own):
        def _get(self, *args: Any, **kwargs: Any) -> Any:
            if isinstance(self.data, np.memmap):
                self.data = np.asarray(self.data)  # pyright: ignore[reportAttributeAccessIssue]
            return super()._get(*args, **kwargs)

    gguf.GGUFReader = Reader  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        gguf.GGUFReader = own
