"""`prune/sparsegpt` and `prune/wanda` against llm-compressor's: half the weights, and 2:4.

    python benchmarks/sparse.py --peer-python PATH_TO_PYTHON_WITH_LLMCOMPRESSOR

How it is measured stands in `_compare.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from _compare import Case, main

PATTERNS = {"50": {"sparsity": 0.5}, "2of4": {"pattern": "2:4"}}


def modifier(method: str, structure: str) -> Any:
    """llm-compressor's modifier; its targets are blocks (with `Linear` it prunes nothing)."""
    from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
    from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier

    kind = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[method]
    return kind(
        sparsity=0.5,
        mask_structure={"50": "0:0", "2of4": "2:4"}[structure],
        targets=["LlamaDecoderLayer"],
        ignore=["re:.*lm_head"],
    )


CASES = [
    Case(f"{method}-{name}", f"prune/{method}", settings, partial(modifier, method, name))
    for method in ("sparsegpt", "wanda")
    for name, settings in PATTERNS.items()
]

if __name__ == "__main__":
    main(CASES, __file__)
