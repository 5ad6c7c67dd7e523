"""What of a model an engine's container has no place for, in words."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from attar.layers import spec_of
from attar.models import Model

_FACTORS = (
    "is two thin linears, which {reader} does not know. --dense multiplies them into one, as large "
    "as it was"
)
_PROMPT = (
    "is learned and read before every text (prompt/...), and {reader} has no place for it. Export "
    "the stage before it, or serve with PyTorch"
)
_WHY = {
    "LowRank": _FACTORS,
    "LowRankResidual": _FACTORS,
    "Resized": "has a shape of its own, and {reader} gives all blocks the same. Prune all blocks "
    "alike (prune/width), or export to onnx or openvino",
    "SharedBlocks": "says that blocks share their weights (prune/share), which {reader} does not "
    "know. Export to onnx or openvino, where every block has a copy, or serve with PyTorch",
    "CacheGrid": "puts cached keys and values on a grid of their own (quantize/kv), of which "
    "{reader} knows nothing. Export the stage before it, or serve with PyTorch",
    "Exits": "lets answers leave before the last block (prune/early-exit), which {reader} does "
    "not. Export the stage before it, or serve with PyTorch",
    "Heads": "holds the heads of further tasks (adapt/tasks), and a file for {reader} has one "
    "head. Save one task's classifier, attar.save(attar.load(PATH, head=TASK), FOLDER), and "
    "export that",
    "SoftPrompt": _PROMPT,
    "Prefix": _PROMPT,
}
_OTHER = "is a module of Attar's own, which {reader} does not know"


def own_modules(model: Model, held: tuple[type[nn.Module], ...], reader: str) -> list[str]:
    """Modules of Attar's own that are none of `held`, a line for each kind of them."""
    found: dict[str, list[str]] = {}
    for name, module in model.module.named_modules():
        spec = spec_of(module)
        if spec is not None and not isinstance(module, held):
            found.setdefault(spec["type"], []).append(name or "the model")
    return [_told(kind, names, reader) for kind, names in found.items()]


def _told(kind: str, names: Sequence[str], reader: str) -> str:
    more = f" (like {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]}{more} {_WHY.get(kind, _OTHER).format(reader=reader)}"


def adapter(names: Sequence[str]) -> str:
    """Of linears with an adapter of PEFT's beside their weights."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"an adapter lies beside the weights of {names[0]}{more}, and no container here holds one. "
        "Train it with `leaves: merged`, or merge it with PEFT (merge_and_unload)"
    )
