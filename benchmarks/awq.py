"""`quantize/awq` against llm-compressor's AWQ: groups of 64, 4 bits, and 3 with zero points.

    python benchmarks/awq.py --peer-python PATH_TO_PYTHON_WITH_LLMCOMPRESSOR

How it is measured stands in `_compare.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from _compare import Case, main


def modifier(bits: int, symmetric: bool) -> Any:
    """llm-compressor's AWQ with its own mappings for Llama."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    weights = QuantizationArgs(
        num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=64
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    rounding = QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    return [AWQModifier(), rounding]


GRIDS = {"int4-g64": partial(modifier, 4, True), "int3-g64-zp": partial(modifier, 3, False)}
CASES = [Case(grid, "quantize/awq", {"grid": grid}, peer) for grid, peer in GRIDS.items()]

if __name__ == "__main__":
    main(CASES, __file__)
