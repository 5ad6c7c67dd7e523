"""A tiny encoder with a WordPiece tokenizer, for containers that hold one."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers

from attar.models.blank import blank
from attar.models.model import Model
from export.decoders import TEXT
from tiny_models import tiny

ROWS = 128


@cache
def pieces() -> Any:
    """A WordPiece tokenizer like BERT's, of small letters."""
    with TemporaryDirectory() as folder:
        blank(Path(folder), TEXT * 4, ROWS)
        return transformers.AutoTokenizer.from_pretrained(folder)


def encoder(**overrides: Any) -> Model:
    """A tiny encoder without a head, which reads pieces of words."""
    sizes = {"vocab_size": ROWS, "hidden_size": 64, "num_attention_heads": 4}
    model = tiny("bert", "embedding", **{**sizes, **overrides})
    return Model(model.module, copy.deepcopy(pieces()), "embedding")
