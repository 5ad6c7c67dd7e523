"""What the command-line tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Attar = Callable[..., Outcome]


def plain_recipe(model: Path, data: Path, **others: object) -> dict[str, object]:
    """A recipe that runs in a moment."""
    return {
        "name": "small",
        "model": str(model),
        "data": str(data),
        "precision": "float32",
        "steps": [{"quantize/rtn": {"id": "rounded", "grid": "int8-channel"}}],
        "measures": {"sequences": 4, "length": 16, "speed": False},
        **others,
    }
