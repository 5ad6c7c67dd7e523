"""The solvers alone against a peer's own functions: the same weight, gram and scales, one linear.

    python benchmarks/solvers.py --peer PYTHON

PYTHON is the interpreter of an environment that holds llm-compressor and hqq. Of the three linears
of SmolLM2-135M's block 5 that have inputs of their own, on 16 x 512 tokens of a novel: the share of
weights that both leave the same (codes of GPTQ, zeros of SparseGPT and Wanda), and the
error of the outputs, tr(E G ET) / tr(W G WT). GPTQ and SparseGPT are run as their papers have them
(`sweeps` and `refits` 0), where both should agree, and as Attar's steps run them. Of SmoothQuant,
`same` is the share of scales within 1e-4 of the peer's. HQQ has scales of its own in either, so
what is told is what it minimizes, the sum of |W - W'|^0.7 over that of |W|^0.7.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
RESULT = HERE / "results" / "solvers.json"
BLOCK, SEQUENCES = 5, 16
GRIDS = {"int4-g64": 4, "int3-g64": 3}
PATTERNS = {"sparse-50": (0.5, 0, 0), "sparse-2:4": (0.5, 2, 4)}  # share, zeros, of how many


def main() -> None:
    """Solve, let the peer solve, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--run", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        theirs(Path(args.run))
        return
    from attar.measure.machine import environment

    with TemporaryDirectory() as name:
        folder = Path(name)
        problems = given(folder)
        subprocess.run([args.peer, __file__, "--run", name], check=True, stdout=subprocess.DEVNULL)
        rows = [row for linear, each in problems.items() for row in compared(folder, linear, each)]
    for row in rows:
        print(json.dumps(row))
    RESULT.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


def given(folder: Path) -> dict[str, tuple[Any, Any, Any]]:
    """Weights, grams and peaks by linear, and files of them and of scales for the peer."""
    import torch
    from _subjects import DECODER
    from safetensors.torch import save_file

    from attar.core.grid import Grid
    from attar.models.model import weight_of
    from attar.ops.activations import Peaks
    from attar.ops.gram import Gram
    from attar.ops.rounding import fit_scales

    DECODER.prepare()
    model = DECODER.load()
    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
    block, grams, peaks = model.blocks[BLOCK], dict[str, Gram](), dict[str, Peaks]()
    linears = {name: block.get_submodule(name) for name in names}
    for name, linear in linears.items():
        grams[name], peaks[name] = Gram(linear.in_features), Peaks(linear.in_features)
        for seen in (grams[name], peaks[name]):
            linear.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.add(inputs[0]))
    with torch.inference_mode():
        for ids in DECODER.ids("novel")[:SEQUENCES].split(4):
            model.base(input_ids=ids)
    problems = {
        name: (
            weight_of(linear).detach().float().clone(),
            grams[name].mean.clone(),
            peaks[name].found,
        )
        for name, linear in linears.items()
    }
    for name, (weight, gram, most) in problems.items():
        scales = {
            grid: fit_scales(weight, Grid.parse(grid), gram.diagonal()).scales for grid in GRIDS
        }
        save_file(
            {"weight": weight, "gram": gram, "peaks": most, **scales},
            folder / f"{name}.safetensors",
        )
    return problems


def theirs(folder: Path) -> None:
    """What llm-compressor's functions, and hqq's, make of the files."""
    from types import SimpleNamespace

    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from hqq.core.quantize import Quantizer
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
    from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight
    from llmcompressor.modifiers.pruning.wanda.wanda_sparsify import sparsify_weight as wanda
    from llmcompressor.modifiers.transform.smoothquant.base import SmoothQuantModifier
    from safetensors.torch import load_file, save_file

    for path in list(folder.glob("*.safetensors")):
        tensors, found = load_file(path), dict[str, torch.Tensor]()
        weight, gram = tensors["weight"], tensors["gram"]
        for grid, bits in GRIDS.items():
            wanted = QuantizationArgs(
                num_bits=bits, strategy="group", group_size=64, symmetric=True, actorder="weight"
            )
            scales = tensors[grid][None]
            zeros = torch.zeros_like(scales)
            one, other = weight[None].clone(), gram[None].clone()
            found[grid] = quantize_weight(one, other, scales, zeros, None, wanted)[0][0]
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        for pattern, (share, zeros_of, run) in PATTERNS.items():
            _, found[f"sparsegpt {pattern}"] = sparsify_weight(
                linear, {linear: gram.clone()}, share, zeros_of, run, 128, 0.01, False
            )
            energy = {linear: gram.diagonal().clone()}
            found[f"wanda {pattern}"] = wanda(linear, energy, share, zeros_of, run)
        modifier = SimpleNamespace(algorithm="smoothquant", smoothing_strength=0.5)
        ranges = 2 * tensors["peaks"]  # it takes what lies between least and largest
        scales_of = SmoothQuantModifier._calculate_smoothing_scales
        found["smoothquant"] = scales_of(modifier, [linear], ranges)
        for bits in GRIDS.values():
            plain = {"nbits": bits, "group_size": 64, "axis": 1, "device": "cpu", "bitpack": False}
            codes, meta = Quantizer.quantize(weight, **plain)
            floats = {**meta, "compute_dtype": torch.float32}
            found[f"hqq {bits}"] = Quantizer.dequantize(codes, floats).reshape(weight.shape)
        save_file({k: v.contiguous() for k, v in found.items()}, path.with_suffix(".found"))


def compared(folder: Path, linear: str, problem: tuple[Any, Any, Any]) -> list[dict[str, Any]]:
    """Ours beside theirs, of one linear."""
    from safetensors.torch import load_file

    from attar.core.grid import Grid
    from attar.ops import gptq, hqq
    from attar.ops.activations import smoothing
    from attar.ops.gram import lost_share
    from attar.ops.rounding import dequantize
    from attar.ops.sparse import Pattern, sparsegpt, wanda_scores

    weight, gram, peaks = problem
    peer, rows = load_file(folder / f"{linear}.found"), list[dict[str, Any]]()

    def tell(solver: str, setting: str, key: str, plain: Any, best: Any) -> None:
        if solver == "gptq":
            same = ((plain - peer[key]).abs() < 1e-5).float().mean()
        else:
            same = ((plain == 0) == (peer[key] == 0)).float().mean()
        rows.append(
            {
                "linear": linear,
                "solver": solver,
                "setting": setting,
                "same": float(same),
                "error_of_the_peer": lost_share(weight, peer[key], gram),
                "error_as_in_the_paper": lost_share(weight, plain, gram),
                "error": lost_share(weight, best, gram),
            }
        )

    for name in GRIDS:
        grid = Grid.parse(name)
        made = [dequantize(gptq.solve(weight, gram, grid, sweeps), grid) for sweeps in (0, 1)]
        tell("gptq", name, name, *made)
    for name, (share, zeros, run) in PATTERNS.items():
        pattern = Pattern(share, run - zeros, run)
        made = [sparsegpt(weight, gram, pattern, refits) for refits in (0, 8)]
        tell("sparsegpt", name, f"sparsegpt {name}", *made)
        kept = weight * pattern.by_row(wanda_scores(weight, gram.diagonal()))
        tell("wanda", name, f"wanda {name}", kept, kept)
    scales = smoothing(peaks, weight, 0.5)
    same = ((scales / peer["smoothquant"] - 1).abs() < 1e-4).float().mean()
    rows.append({"linear": linear, "solver": "smoothquant", "setting": "0.5", "same": float(same)})
    for bits in GRIDS.values():
        grid = Grid.parse(f"int{bits}-g64-min")
        made = {"error": dequantize(hqq.solve(weight, grid), grid), "peer": peer[f"hqq {bits}"]}
        lost = {k: float((weight - w).abs().pow(0.7).sum()) for k, w in made.items()}
        whole = float(weight.abs().pow(0.7).sum())
        rows.append(
            {
                "linear": linear,
                "solver": "hqq",
                "setting": grid.name,
                "error_of_the_peer": lost["peer"] / whole,
                "error": lost["error"] / whole,
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
