"""What `compress.py` compares: by case a subject, and the ways in which it is compressed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import _peers
from _compare import Method, own, peer
from _subjects import DECODER, ENCODER, Subject

HEALED = ", healed"
CALIBRATED = ("whitened", "fisher")
LEARNED = ("autoround", "auto-round, 200 iterations")
HEAL = {  # within 20 minutes; the encoder has no head whose answers could be matched
    DECODER: ("heal/auto", {"tokens": 120_000}),
    ENCODER: ("heal/blockwise", {"sequences": 512}),
}
TAUGHT = {"tokens": 60_000, "batch": 4}  # while rounding or pruning; half of what healing reads


def llm_compressor(
    subject: Subject, modifiers: dict[str, Callable[[], Any]], whole: bool = False
) -> dict[str, Method]:
    """What llm-compressor does with each of these modifiers."""
    return {
        f"{name} of llm-compressor": peer(
            "llm-compressor", _peers.llm_compressor(modifier, subject.block), whole
        )
        for name, modifier in modifiers.items()
    }


def rounding(bits: int, subject: Subject) -> dict[str, Method]:
    """Everything that rounds to symmetric codes in groups of 64."""
    grid = f"int{bits}-g64"
    autoround = ("quantize/autoround", {"grid": grid, "batch": 4})
    found = {
        "rtn": own(("quantize/rtn", {"grid": grid})),
        "gptq": own(("quantize/gptq", {"grid": grid})),
        "awq": own(("quantize/awq", {"grid": grid})),
        "autoround": own(autoround),
        f"gptq{HEALED}": own(("quantize/gptq", {"grid": grid}), HEAL[subject]),
        f"autoround{HEALED}": own(autoround, HEAL[subject]),
    }
    if subject is ENCODER:  # of which 200 are the default
        found["autoround, 50 steps"] = own((autoround[0], {**autoround[1], "steps": 50}))
    peers = {
        "rtn": partial(_peers.rounding_modifier, grid),
        "gptq": partial(_peers.gptq_modifier, grid),
        "awq": partial(_peers.awq_modifier, grid, subject.block),
    }
    found |= llm_compressor(subject, peers)
    # 90 take 20 minutes on the decoder, 1500 on the encoder
    for iterations in (60, 90, 200) if subject is DECODER else (200, 1500):
        name = f"auto-round, {iterations} iterations"
        found[name] = peer("auto-round", _peers.auto_round(bits, 64, iterations))
    if subject is DECODER:  # GPTQModel (7.7) knows no BERT
        found["gptq of gptqmodel"] = peer("gptqmodel", _peers.gptqmodel(bits, 64))
    if subject is DECODER and bits < 4:
        found["qat"] = own(("quantize/qat", {"grid": grid, **TAUGHT}))
    return found


def floats(grid: str, subject: Subject) -> dict[str, Method]:
    """Weights that become small floats."""
    peers = {
        "rtn": partial(_peers.rounding_modifier, grid),
        "gptq": partial(_peers.gptq_modifier, grid),
    }
    found = {name: own((f"quantize/{name}", {"grid": grid})) for name in peers}
    return found | llm_compressor(subject, peers)


def inputs(subject: Subject) -> dict[str, Method]:
    """Weights and what they are multiplied with at 8 bits."""
    smooth = partial(_peers.smoothquant_modifier, block=subject.block)
    peers = {
        "dynamic": partial(_peers.rounding_modifier, "dynamic"),
        "static": partial(_peers.rounding_modifier, "static"),
        "smoothquant": partial(smooth, 0.5, "rtn"),
        "smoothquant, gptq": partial(smooth, 0.8, "gptq"),  # as in its examples
    }
    found = {
        name: own((f"quantize/{name}", {}), whole=True)
        for name in ("dynamic", "static", "smoothquant")
    }
    return found | llm_compressor(subject, peers, whole=True)


def cache() -> dict[str, Method]:
    """Keys and values at 8 bits, weights as they are."""
    found = {
        name: own(("quantize/kv", {"cache": numbers}), whole=True)
        for name, numbers in {"fp8": "fp8-e4m3", "int8": "int8"}.items()
    }
    peers = {
        "fp8": partial(_peers.kv_modifier, "float"),
        "int8": partial(_peers.kv_modifier, "int"),
    }
    return found | llm_compressor(DECODER, peers, whole=True)


def heads(subject: Subject) -> dict[str, Method]:
    """Two thirds of the attention's heads; no peer has it."""
    scores = ["activation", "similarity"]
    if subject is DECODER:  # the encoder has no answers, to which gradients could lead
        scores.append("taylor")
    return {
        score: own(("prune/heads", {"fraction": 2 / 3, "score": score}), whole=True)
        for score in scores
    }


def sizes() -> dict[str, dict[str, Method]]:
    """Other sizes on disk than those of symmetric groups of 64."""
    finer = ("quantize/gptq", {"grid": "int4-g32"})
    return {
        "int8-channel": {"rtn": own(("quantize/rtn", {"grid": "int8-channel"}))},
        "int4-g32": {
            "gptq": own(finer),
            "autoround": own(("quantize/autoround", {"grid": "int4-g32", "batch": 4})),
        },
        "3.5 bits": {"mixed": own(("quantize/mixed", {"bits": 3.5}))},
        "6 bits": {"mixed": own(("quantize/mixed", {"bits": 6.0}))},
        **{
            f"int{bits}-g64-min": {
                "hqq": own(("quantize/hqq", {"grid": f"int{bits}-g64-min"})),
                "hqq of its authors": peer("hqq", _peers.hqq(bits, 64)),
            }
            for bits in (4, 3)
        },
    }


def pruning(settings: dict[str, Any], structure: str, subject: Subject) -> dict[str, Method]:
    """Zeros in half of the weights."""
    found = {name: own((f"prune/{name}", settings)) for name in ("magnitude", "wanda", "sparsegpt")}
    found[f"sparsegpt{HEALED}"] = own(("prune/sparsegpt", settings), HEAL[subject])
    if subject is DECODER:
        found["gradual"] = own(("prune/gradual", {**settings, **TAUGHT}))
    peers = {
        name: partial(_peers.sparse_modifier, name, structure, subject.block)
        for name in ("wanda", "sparsegpt")
    }
    return found | llm_compressor(subject, peers)


def lowrank(keep: float, subject: Subject) -> dict[str, Method]:
    """Fewer weights by thin factors; no peer has it."""
    kinds = ["svd", "whitened"]
    if subject is DECODER:  # the encoder has no answers, to which gradients could lead
        kinds += ["fisher", "balanced"]
    found = {kind: own((f"lowrank/{kind}", {"keep": keep})) for kind in kinds}
    best = kinds[-1]
    return {**found, f"{best}{HEALED}": own((f"lowrank/{best}", {"keep": keep}), HEAL[subject])}


def together(subject: Subject) -> dict[str, dict[str, Method]]:
    """One way after another: fewer weights, or zeros, and what is left at 4 bits."""
    coded = ("quantize/gptq", {"grid": "int4-g64"})
    thin = "balanced" if subject is DECODER else "whitened"
    firsts = {
        "lowrank-80": (thin, (f"lowrank/{thin}", {"keep": 0.8})),
        "sparse-50": ("sparsegpt", ("prune/sparsegpt", {"sparsity": 0.5})),
    }
    return {
        f"{case}, int4-g64": {
            f"{way}, gptq": own(first, coded),
            f"{way}, gptq{HEALED}": own(first, coded, HEAL[subject]),
        }
        for case, (way, first) in firsts.items()
    }


@dataclass(frozen=True)
class Case:
    """What is compressed, and in which ways."""

    subject: Subject
    methods: dict[str, Method]


CASES: dict[str, Case] = {
    f"{prefix}{name}": Case(subject, methods)
    for prefix, subject in (("", DECODER), ("encoder ", ENCODER))
    for name, methods in {
        "int4-g64": rounding(4, subject),
        "int3-g64": rounding(3, subject),
        "int2-g64": rounding(2, subject),
        "sparse-50": pruning({"sparsity": 0.5}, "0:0", subject),
        "sparse-2:4": pruning({"pattern": "2:4"}, "2:4", subject),
        "lowrank-80": lowrank(0.8, subject),
        "lowrank-60": lowrank(0.6, subject),
        "w8a8": inputs(subject),
        "heads-67": heads(subject),
        "fp8-e4m3": floats("fp8-e4m3", subject),
        "mxfp4": floats("mxfp4", subject),
        **together(subject),
        **sizes(),
    }.items()
}
CASES["kv"] = Case(DECODER, cache())
PARTS = {  # what is seen on other parts of the novel too, for it hangs on the calibration
    "lowrank-80": CALIBRATED,  # the order of the ways; plain `svd` reads no data
    "lowrank-60": CALIBRATED,
    "encoder int4-g64": LEARNED,  # whether two that learn roundings are level
    "encoder int3-g64": LEARNED,
}
CASES |= {
    f"{name}, part {part}": Case(
        replace(CASES[name].subject, part=part),
        {way: method for way, method in CASES[name].methods.items() if way in wanted},
    )
    for end, wanted in PARTS.items()
    for name in CASES
    if name.endswith(end)
    for part in (1, 2)
}
