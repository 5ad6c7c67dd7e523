"""What the methods of a comparison have in common: how they are run, and what is kept."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _peers import Runner, loaded
from _subjects import RESULT, Subject

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Method:
    """Whose it is, and what runs it: leaves in a folder what is judged, tells seconds and memory.

    That is weights; or, of what weights do not tell of (`whole`), what the judge said of the model
    itself, in the same process.
    """

    package: str
    run: Callable[[Subject, Path], dict[str, float]]


class Kept:
    """A table on disk, a row for every case and method, each with where it was measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        there = json.loads(path.read_text())["rows"] if path.exists() else []
        self.rows = {(row["case"], row["method"]): row for row in there}

    def put(self, row: dict[str, Any]) -> None:
        """Put a row in, in the place of an earlier one."""
        from attar.measure.machine import environment

        self._write(row | {"environment": environment()})

    def add(self, row: dict[str, Any], more: dict[str, Any]) -> None:
        """Put more into a row that is there."""
        self._write(row | more)

    def _write(self, row: dict[str, Any]) -> None:
        self.rows[row["case"], row["method"]] = row
        self.path.write_text(json.dumps({"rows": list(self.rows.values())}, indent=1) + "\n")


def own(*steps: tuple[str, dict[str, Any]], whole: bool = False) -> Method:
    """Attar's steps, one after another; healing may read all of the novel."""

    def run(subject: Subject, out: Path) -> dict[str, float]:
        from attar.core.registry import find

        model, seconds = subject.load(), 0.0
        for kind, settings in steps:
            step = find(kind).model_validate(settings)
            heals = kind.startswith(("heal/", "distill/"))
            with TemporaryDirectory(dir=subject.folder) as scratch:
                ctx = _context(subject, Path(scratch))
                with nullcontext() if heals else _calibrated_on(subject):
                    started = time.monotonic()
                    model = step.apply(model, ctx)
                    seconds += time.monotonic() - started
        found = {"seconds": seconds, "peak_memory": peak_memory(), "bytes": size(model)}
        if whole:
            subject.tell(subject.load().module, model.module, out)
        else:
            write(weights(model), model.module, out)
        return found

    return Method("attar", run)


def size(model: Any) -> int:
    """Bytes of all tensors, each once, floats in bfloat16."""
    state = model.module.state_dict()
    several = {tensor.data_ptr(): tensor for tensor in state.values() if tensor.numel()}
    return sum(
        tensor.numel() * (2 if tensor.is_floating_point() else tensor.element_size())
        for tensor in several.values()
    )


def _context(subject: Subject, scratch: Path) -> Any:
    import _texts

    from attar.core.context import Context
    from attar.core.recipe import DataSource
    from attar.data import load
    from attar.measure.machine import fast_bf16

    whole = subject.task == "causal-lm"
    path = str(_texts.novel() if whole else _texts.passages(_texts.novel(), 160))

    def data(name: Any) -> Any:
        return load(DataSource(path=path, split=name, labeled=whole), subject.task, name)

    precision = "bf16" if fast_bf16("cpu") else "float32"
    return Context(
        subject.task, data, lambda _: subject.load(), precision=precision, scratch=scratch
    )


@contextmanager
def _calibrated_on(subject: Subject) -> Iterator[None]:
    """Calibrate on the tokens that the peers have."""
    import torch

    from attar.data.batches import Batch

    ids = subject.ids("novel")

    def same(step: Any, *_: Any) -> list[Batch]:
        return [Batch(part, torch.ones_like(part), part) for part in ids.split(step.batch)]

    modules = [module for name, module in sys.modules.items() if name.startswith("attar.")]
    changed = [(module, module.calibration) for module in modules if hasattr(module, "calibration")]
    for module, _ in changed:
        module.calibration = same  # type: ignore[attr-defined]
    yield
    for module, before in changed:
        module.calibration = before  # type: ignore[attr-defined]


def peer(package: str, runner: Runner, whole: bool = False) -> Method:
    """A peer's method."""

    def run(subject: Subject, out: Path) -> dict[str, float]:
        import torch

        ids = json.loads(subject.tokens("novel").read_text())
        model, seconds = runner(str(subject.original), ids)
        found = {"seconds": seconds, "peak_memory": peak_memory()}
        if whole:
            subject.tell(loaded(str(subject.original))[0], model, out)
            return found
        state = {
            name: module.weight.detach()
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and ".layer" in name  # those of blocks
        }
        write(state, model, out)
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


def write(weights: dict[str, Any], module: Any, out: Path) -> None:
    """Plain floats for the judge: those of linears, their biases, and norms.

    A method may fold scales into a norm or a linear, its bias too.
    """
    from safetensors.torch import save_file

    state = {f"{name}.weight": weight for name, weight in weights.items()}
    for name, part in module.named_modules():
        norm = "Norm" in type(part).__name__
        state |= {f"{name}.weight": part.weight} if norm else {}
        bias = getattr(part, "bias", None) if norm or name in weights else None
        state |= {f"{name}.bias": bias} if bias is not None else {}
    out.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().float().contiguous() for name, tensor in state.items()}
    save_file(plain, out / RESULT)


def peak_memory() -> int:
    """The most memory that this process has had so far, in bytes."""
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be inherited
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
