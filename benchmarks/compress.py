"""Attar's compression against its peers', on the same tokens, side by side.

    python benchmarks/compress.py --peer llm-compressor=PYTHON --peer auto-round=PYTHON
        --peer gptqmodel=PYTHON --peer hqq=PYTHON [--case int4-g64] [--method gptq]

SmolLM2-135M-Instruct, all linears of the blocks, calibrated on 32 x 512 tokens of a novel, judged
on 24 x 512 tokens of political speeches by its divergence from the original; and in cases that say
so the encoder of all-MiniLM-L6-v2, on 64 x 256 and 1,024 x 64 tokens, by the vectors of passages.
Every method runs alone, in a process of its own, and writes plain float weights; one judge reads
them all. Seconds are those of the method (model already loaded), peak memory that of its process up
to the method's end, before anything is written. After a case every method of Attar's is held
against the best peer's, with the paired interval of the difference. PYTHON is the interpreter of an
environment that holds the peer; without it, the peer is left out. Where other processes run beside,
`--busy` says so in the rows: their seconds tell nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import _peers
from _compare import HERE, Kept, Method, own, peer
from _subjects import DECODER, ENCODER, ITEMS, RESULT, WORK, Subject, less

SELF = "attar"
HEALED = ", healed"
HEAL = {  # within 20 minutes; the encoder has no head whose answers could be matched
    DECODER: ("heal/auto", {"tokens": 120_000}),
    ENCODER: ("heal/blockwise", {"sequences": 512}),
}


def rounding(bits: int, subject: Subject) -> dict[str, Method]:
    """Everything that rounds to symmetric codes in groups of 64."""
    grid = f"int{bits}-g64"
    llm_compressor = {
        name: peer("llm-compressor", _peers.llm_compressor(modifier, subject.block))
        for name, modifier in {
            "gptq of llm-compressor": partial(_peers.gptq_modifier, bits),
            "awq of llm-compressor": partial(_peers.awq_modifier, bits, subject.block),
        }.items()
    }
    autoround = ("quantize/autoround", {"grid": grid, "batch": 4})
    found = {
        "rtn": own(("quantize/rtn", {"grid": grid})),
        "gptq": own(("quantize/gptq", {"grid": grid})),
        "awq": own(("quantize/awq", {"grid": grid})),
        "autoround": own(autoround),
        f"gptq{HEALED}": own(("quantize/gptq", {"grid": grid}), HEAL[subject]),
        f"autoround{HEALED}": own(autoround, HEAL[subject]),
    }
    found |= llm_compressor
    if subject is ENCODER:  # the other peers are for decoders
        return found
    return {
        **found,
        "gptq of gptqmodel": peer("gptqmodel", _peers.gptqmodel(bits, 64)),
        **{
            f"auto-round, {iterations} iterations": peer(
                "auto-round", _peers.auto_round(bits, 64, iterations)
            )
            for iterations in (60, 90, 200)  # 90 take the 20 minutes that healing may take
        },
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
    for name in ("wanda", "sparsegpt"):
        modifier = partial(_peers.sparse_modifier, name, structure, subject.block)
        runner = _peers.llm_compressor(modifier, subject.block)
        found[f"{name} of llm-compressor"] = peer("llm-compressor", runner)
    return found


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
        **together(subject),
        **sizes(),
    }.items()
}
CASES |= {  # whether the order of the ways hangs on what they are calibrated on
    f"{name}, part {part}": Case(
        replace(CASES[name].subject, part=part),
        {way: method for way, method in CASES[name].methods.items() if not way.endswith(HEALED)},
    )
    for name in CASES
    if name.endswith(("lowrank-80", "lowrank-60"))
    for part in (1, 2)
}


def main() -> None:
    """Run what was asked for, judge it, and keep it beside what is known already."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--method", action="append")
    parser.add_argument(
        "--busy", action="store_true", help="say in the rows that seconds tell nothing here"
    )
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        case, method = args.run
        chosen = CASES[case]
        print(json.dumps(chosen.methods[method].run(chosen.subject, folder(case, method))))
        return
    pythons = {SELF: sys.executable, **dict(each.split("=", 1) for each in args.peer)}
    kept = Kept(HERE / "results" / "compress.json")
    for case in args.case or CASES:
        CASES[case].subject.prepare()
        for name, method in CASES[case].methods.items():
            if method.package in pythons and name in (args.method or [name]):
                found = alone(pythons[method.package], case, name)
                row = {"case": case, "method": name, **judged(case, name), **found}
                row |= {"busy": True} if args.busy else {}
                print(json.dumps(row), flush=True)
                kept.put(row)
        compare(case, kept)


def judged(case: str, method: str) -> dict[str, float]:
    """What became of the weights that a method left."""
    return CASES[case].subject.judged(folder(case, method))


def compare(case: str, kept: Kept) -> None:
    """Hold every method of Attar's against the best peer that has it, on the same sequences.

    `less`: of what both are judged by; `nats`: of what a token costs, the logarithm of perplexity.
    What no peer has, and what was healed, is held against the best of all; what was healed also
    against what it was before: the share of the divergence that is gone. Rows whose weights are no
    longer there stay as they are.
    """
    methods = CASES[case].methods
    judge = "kl" if CASES[case].subject.task == DECODER.task else "distance"
    rows = {name: row for (where, name), row in kept.rows.items() if where == case}
    rows = {name: row for name, row in rows.items() if (folder(case, name) / RESULT).exists()}
    own = {name: row for name, row in rows.items() if methods[name].package == SELF}
    peers = sorted(rows.keys() - own.keys(), key=lambda name: rows[name][judge])
    for name, row in own.items():
        found: dict[str, Any] = {}
        best = next((peer for peer in peers if peer.replace("-", "").startswith(name)), None)
        if best is None and peers:
            best = peers[0]
        if best is not None:
            for each in (name, best):
                if not (folder(case, each) / ITEMS).exists():
                    judged(case, each)
            found = {"best_peer": best, **less(folder(case, name), folder(case, best))}
        before = rows.get(name.removesuffix(HEALED))
        if name.endswith(HEALED) and before is not None:
            found["healed_share"] = 1 - row[judge] / before[judge]
        if found:
            print(json.dumps({"case": case, "method": name, **found}), flush=True)
            kept.add(row, found)


def folder(case: str, method: str) -> Path:
    """Where a method leaves its weights."""
    return WORK / f"{case}-{method}".replace(":", "of").replace(" ", "-")


def alone(python: str, case: str, method: str) -> dict[str, float]:
    """Run one method in a process of its own."""
    done = subprocess.run([python, __file__, "--run", case, method], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{method} failed at {case}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
