"""Attar's compression against its peers', on the same tokens, side by side.

    python benchmarks/compress.py --peer llm-compressor=PYTHON --peer auto-round=PYTHON
        --peer gptqmodel=PYTHON --peer hqq=PYTHON [--case int4-g64] [--method gptq]

SmolLM2-135M-Instruct, all linears of the blocks, calibrated on 32 x 512 tokens of a novel, judged
on 24 x 512 tokens of political speeches by its divergence from the original; and in cases that say
so the encoder of all-MiniLM-L6-v2, on 64 x 256 and 1,024 x 64 tokens, by the vectors of passages.
Every method runs alone, in a process of its own, and writes plain float weights; one judge reads
them all. Where weights do not tell (inputs or a cache that are rounded as the model runs, heads
that are gone), the same judge runs in that process, on the method's own modules. Seconds are those
of the method (model already loaded), peak memory that of its process up to the method's end, before
anything is written. After a case every method of Attar's is held against the best peer's, with the
paired interval of the difference. PYTHON is the interpreter of an environment that holds the peer;
without it, the peer is left out. Where other processes run beside, `--busy` says so in the rows:
their seconds tell nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _cases import CASES, HEALED
from _compare import HERE, Kept
from _subjects import DECODER, ITEMS, RESULT, WORK, less

SELF = "attar"
BESIDE = {  # of a method of Attar's, another that it is held against as well
    "qat": "gptq",
    "gradual": "wanda",
    "taylor": "activation",
    "similarity": "activation",
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
    against what it was before: the share of the divergence that is gone. Rows stay as they are
    whose weights, or whose peer's, are no longer there.
    """
    methods = CASES[case].methods
    judge = "kl" if CASES[case].subject.task == DECODER.task else "distance"
    rows = {name: row for (where, name), row in kept.rows.items() if where == case}
    peers = [name for name in rows if methods[name].package != SELF]
    peers.sort(key=lambda name: rows[name][judge])
    own = {name: row for name, row in rows.items() if name not in peers and left(case, name)}
    for name, row in own.items():
        found: dict[str, Any] = {}
        best = next((peer for peer in peers if peer.replace("-", "").startswith(name)), None)
        if best is None and peers:
            best = peers[0]
        if best is not None and left(case, best):
            for each in (name, best):
                if not (folder(case, each) / ITEMS).exists():
                    judged(case, each)
            found = {"best_peer": best, **less(folder(case, name), folder(case, best))}
        if BESIDE.get(name) in own:
            other = less(folder(case, name), folder(case, BESIDE[name]))
            found |= {f"{BESIDE[name]}_{key}": value for key, value in other.items()}
        before = rows.get(name.removesuffix(HEALED))
        if name.endswith(HEALED) and before is not None:
            found["healed_share"] = 1 - row[judge] / before[judge]
        if found:
            print(json.dumps({"case": case, "method": name, **found}), flush=True)
            kept.add(row, found)


def left(case: str, method: str) -> bool:
    """Whether what a method left is there still."""
    return any((folder(case, method) / name).exists() for name in (RESULT, ITEMS))


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
