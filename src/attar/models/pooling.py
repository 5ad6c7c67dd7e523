"""How a classifier's own head reads the hidden states, so that others can read them alike."""

from __future__ import annotations

from attar.layers.exits import Pool
from attar.models.model import Model

_HEADS = ("classifier", "score")  # by transformers' own names, of encoders and of decoders


def head_of(model: Model) -> str:
    """The name of the module whose outputs are a classifier's answers."""
    return next(name for name in _HEADS if hasattr(model.module, name))


def pooling_of(model: Model) -> Pool:
    """Which hidden states it reads: the first token's, the last real token's, or their mean."""
    if head_of(model) == "score":
        return "last"
    return "mean" if getattr(model.config, "classifier_pooling", "cls") == "mean" else "first"
