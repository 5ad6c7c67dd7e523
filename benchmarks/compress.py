"""Attar's compression against its peers', on the same tokens, side by side.

    python benchmarks/compress.py --peer llm-compressor=PYTHON --peer auto-round=PYTHON
        --peer gptqmodel=PYTHON [--case int4-g64] [--method gptq]

SmolLM2-135M-Instruct, all linears of the blocks. Calibrated on 32 x 512 tokens of a novel, judged
on 24 x 512 tokens of political speeches. Every method runs alone, in a process of its own, and
writes plain float weights; one judge reads them all. Seconds are those of the method (model already
loaded), peak memory that of its process up to the method's end, before anything is written.
PYTHON is the interpreter of an environment that holds the peer; without it, the peer is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import _peers
from _compare import HERE, Kept, Method, judge, own, peer, prepare

SELF = "attar"


def rounding(bits: int) -> dict[str, Method]:
    """Everything that rounds to symmetric codes in groups of 64."""
    grid = f"int{bits}-g64"
    gptq, awq = partial(_peers.gptq_modifier, bits), partial(_peers.awq_modifier, bits)
    return {
        "rtn": own(("quantize/rtn", {"grid": grid})),
        "gptq": own(("quantize/gptq", {"grid": grid})),
        "awq": own(("quantize/awq", {"grid": grid})),
        "autoround": own(("quantize/autoround", {"grid": grid, "batch": 4})),
        "gptq of llm-compressor": peer("llm-compressor", _peers.llm_compressor(gptq)),
        "awq of llm-compressor": peer("llm-compressor", _peers.llm_compressor(awq)),
        "gptq of gptqmodel": peer("gptqmodel", _peers.gptqmodel(bits, 64)),
        "auto-round, 60 iterations": peer("auto-round", _peers.auto_round(bits, 64, 60)),
    }


def pruning(settings: dict[str, Any], structure: str) -> dict[str, Method]:
    """Zeros in half of the weights."""
    found = {name: own((f"prune/{name}", settings)) for name in ("magnitude", "wanda", "sparsegpt")}
    for name in ("wanda", "sparsegpt"):
        modifier = partial(_peers.sparse_modifier, name, structure)
        runner = _peers.llm_compressor(modifier)
        found[f"{name} of llm-compressor"] = peer("llm-compressor", runner)
    return found


def lowrank(keep: float) -> dict[str, Method]:
    """Fewer weights by thin factors; no peer has it."""
    kinds = ("svd", "fisher", "whitened", "balanced")
    return {kind: own((f"lowrank/{kind}", {"keep": keep})) for kind in kinds}


CASES: dict[str, dict[str, Method]] = {
    "int4-g64": rounding(4),
    "int3-g64": rounding(3),
    "int2-g64": rounding(2),
    "sparse-50": pruning({"sparsity": 0.5}, "0:0"),
    "sparse-2:4": pruning({"pattern": "2:4"}, "2:4"),
    "lowrank-80": lowrank(0.8),
    "lowrank-60": lowrank(0.6),
}


def main() -> None:
    """Run what was asked for, judge it, and keep it beside what is known already."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--method", action="append")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        case, method = args.run
        print(json.dumps(CASES[case][method].run(folder(case, method))))
        return
    pythons = {SELF: sys.executable, **dict(each.split("=", 1) for each in args.peer)}
    prepare()
    kept = Kept(HERE / "results" / "compress.json")
    for case, name, method in wanted(args.case, args.method):
        if method.package in pythons:
            found = alone(pythons[method.package], case, name)
            row = {"case": case, "method": name, **judge(folder(case, name)), **found}
            print(json.dumps(row), flush=True)
            kept.put(row)


def wanted(cases: list[str] | None, methods: list[str] | None) -> Iterator[tuple[str, str, Method]]:
    """Every method of every case that was asked for."""
    for case in cases or CASES:
        for name, method in CASES[case].items():
            if methods is None or name in methods:
                yield case, name, method


def folder(case: str, method: str) -> Path:
    """Where a method leaves its weights."""
    return Path(".attar/bench/compare") / f"{case}-{method}".replace(":", "of").replace(" ", "-")


def alone(python: str, case: str, method: str) -> dict[str, float]:
    """Run one method in a process of its own."""
    done = subprocess.run([python, __file__, "--run", case, method], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{method} failed at {case}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
