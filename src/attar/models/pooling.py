"""Which hidden states a text is told by: a classifier's own, and those of a sentence's vector."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from attar.errors import ModelError
from attar.layers.exits import Pool
from attar.models.model import Model
from attar.models.source import POOLING, Files

T = TypeVar("T")
_HEADS = ("classifier", "score")  # by transformers' own names, of encoders and of decoders
POOLING_KEY = "sentence_pooling"  # of config.json: how an encoder makes a text's vector
_MODULES = "modules.json"  # what sentence-transformers runs one after another
_WITHOUT_WEIGHTS = ("Transformer", "Pooling", "Normalize", "Dropout")  # beside the model's own
_THEIRS: dict[str, Pool] = {  # sentence-transformers' names
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}


def head_of(model: Model) -> str:
    """The name of the module whose outputs are a classifier's answers."""
    return next(name for name in _HEADS if hasattr(model.module, name))


def pooling_of(model: Model) -> Pool:
    """Which hidden states are read: the first token's, the last real token's, or their mean.

    Those that a classifier's own head reads, or that make an encoder's vectors; of a causal
    language model the last one, for no other knows the whole text.
    """
    if model.task == "embedding":
        return getattr(model.config, POOLING_KEY, "mean")
    if model.task == "masked-lm":
        return "mean"
    if model.task == "causal-lm" or head_of(model) == "score":
        return "last"
    return "mean" if getattr(model.config, "classifier_pooling", "cls") == "mean" else "first"


def pooled(hidden: Tensor, mask: Tensor, pool: Pool) -> Tensor:
    """A text's vector, [batch, width], of its tokens', [batch, length, width].

    mask: [batch, length], True where a token is real.
    """
    if pool == "first":
        return hidden[:, 0]
    if pool == "last":
        last = (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(-1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


def vectors(model: Model, batch: Any) -> Tensor:
    """The vectors of a batch of texts, [batch, width]."""
    return pooled(model.hidden(batch), batch.attention_mask.bool(), pooling_of(model))


def remember(config: Any, files: Files) -> None:
    """Let a config say how vectors are made: as it says already, as sentence-transformers wrote
    it down beside the weights, or by the mean.
    """
    said = getattr(config, POOLING_KEY, None)
    if said is None:
        setattr(config, POOLING_KEY, _written(files))
    elif said not in _THEIRS.values():
        known = ", ".join(_THEIRS.values())
        raise ModelError(
            f"{files.folder}: `{POOLING_KEY}` in config.json is {said!r}, none of {known}"
        )


def _read(path: Path, made: Callable[[Any], T]) -> T:
    """What is made of a file of sentence-transformers'; raises ModelError where it is no such."""
    try:
        return made(json.loads(path.read_text("utf-8")))
    except (OSError, AttributeError, TypeError, KeyError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}. Copy it again") from None


def _check_modules(files: Files) -> None:
    """Raise ModelError where sentence-transformers makes vectors by more than pooling."""
    path = files.folder / _MODULES
    if not path.exists():
        return
    kinds = _read(path, lambda said: [each["type"].rpartition(".")[2] for each in said])
    strange = [kind for kind in kinds if kind not in _WITHOUT_WEIGHTS]
    if strange:
        raise ModelError(
            f"{path} puts vectors through a module that is not known here ({', '.join(strange)}), "
            "so they would be others than sentence-transformers'. Take that file away to work "
            "with the pooled states themselves"
        )


def _written(files: Files) -> Pool:
    _check_modules(files)
    path = files.folder / POOLING
    if not path.exists():
        return "mean"
    said: dict[str, Any] = _read(path, dict)
    modes = [mode for mode, on in said.items() if mode.startswith("pooling_mode_") and on is True]
    if len(modes) == 1 and modes[0] in _THEIRS:
        return _THEIRS[modes[0]]
    raise ModelError(
        f"{path} makes vectors in a way that is not known here ({', '.join(modes) or 'none'}). "
        f"Known are {', '.join(_THEIRS)}"
    )
