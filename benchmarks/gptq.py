"""`quantize/gptq` against llm-compressor's GPTQ: symmetric, groups of 64, 4 and 3 bits.

    python benchmarks/gptq.py --peer-python PATH_TO_PYTHON_WITH_LLMCOMPRESSOR

How it is measured stands in `_compare.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from _compare import Case, main


def modifier(bits: int) -> Any:
    """llm-compressor's GPTQ with the defaults of its scheme."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import GPTQModifier

    weights = QuantizationArgs(
        num_bits=bits, type="int", symmetric=True, strategy="group", group_size=64
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    return GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])


CASES = [
    Case(f"int{bits}-g64", "quantize/gptq", {"grid": f"int{bits}-g64"}, partial(modifier, bits))
    for bits in (4, 3)
]

if __name__ == "__main__":
    main(CASES, __file__)
