"""A tiny model on disk, text, and a recipe that presses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny_models
from attar.models import save


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    save(tiny_models.tiny("llama", "causal-lm"), folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred lines of words that the tiny tokenizer knows."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    text = "\n".join(tiny_models.texts(count=600, length=12))
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def plain(tiny_folder: Path, text_file: Path) -> dict[str, Any]:
    """Three steps of different kinds, small enough for a test."""
    return {
        "name": "tiny",
        "model": str(tiny_folder),
        "data": str(text_file),
        "precision": "float32",
        "steps": [
            {"prune/depth": {"remove": 1, "sequences": 4, "length": 16, "id": "shallower"}},
            {
                "distill/logits": {
                    "steps": 6,
                    "batch": 4,
                    "length": 16,
                    "checkpoint_minutes": 0,
                    "id": "healed",
                }
            },
            {"quantize/gptq": {"grid": "int4-g32", "sequences": 4, "length": 16, "id": "small"}},
        ],
        "measures": {"sequences": 4, "length": 16, "speed": False},
        "guard": {"perplexity": 100.0, "may_dip": ["shallower", "small"]},
    }
