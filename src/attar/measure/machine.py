"""The machine: what it is, what it computes natively, and how much memory is free."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from attar.errors import UserError

_CPU = Path("/proc/cpuinfo")
# Of x86 with matrix units, of AMD, and of ARM. Intel's avx512_bf16 without the matrix units, as
# some clouds lend it, multiplies at half the pace of float32 (0.52 on an Emerald Rapids).
_BF16 = {"amx_bf16", "avx512_bf16", "bf16"}
_SLOW = {"GenuineIntel": "avx512_bf16"}
# Of x86: dot products of 8-bit numbers that are summed in 32 bits.
_INT8 = {"amx_int8", "avx512_vnni", "avx_vnni"}
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")
# What a container's limit is called: the limit, what is used, and how much of that is cache.
_NEW = ("memory.max", "memory.current", "inactive_file")
_OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def environment() -> dict[str, Any]:
    """The facts that a report states: without them its seconds say nothing."""
    facts: dict[str, Any] = {
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        "bf16": "fast" if fast_bf16("cpu") else "slow or absent",
    }
    if torch.cuda.is_available():
        facts["gpu"] = ", ".join(
            torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
        )
    facts["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    facts["python"] = platform.python_version()
    return facts | {name: _version(name) for name in ("torch", "transformers", "attar")}


def processor(device: str = "cpu") -> str:
    """The name of what computes: the processor's, or the GPU's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return _field("model name") or platform.processor() or platform.machine()


def cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fast_bf16(device: str | torch.device) -> bool:
    """Whether bf16 arithmetic is faster than float32: native, and not at half pace."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(False)
    if kind != "cpu" or not _mkldnn_bf16():
        return False
    flags = _field("flags") or _field("Features")
    return not (_BF16 - {_SLOW.get(_field("vendor_id"))}).isdisjoint(flags.split())


def saturates_int8() -> bool:
    """Whether engines' 8-bit products may overflow here: x86 without VNNI adds them in 16 bits."""
    flags = _field("flags").split()
    return "avx2" in flags and _INT8.isdisjoint(flags)


def check_device(name: str) -> None:
    """Raise UserError where this machine has no such device."""
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    there += ["cuda"] if len(there) > 1 else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    if name not in there:
        raise UserError(
            f"there is no device {name!r} on this machine. Name one that it has: {', '.join(there)}"
        )


def _mkldnn_bf16() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # emulation counts here


def free_memory() -> int:
    """Bytes that can still be taken: the machine's, or what a container's limit leaves."""
    left = [psutil.virtual_memory().available]
    for folder, (limit, used, cache) in _limits():
        with suppress(OSError, ValueError):  # no such limit here, or `max`
            room = int((folder / limit).read_text()) - int((folder / used).read_text())
            left.append(room + _droppable(folder / "memory.stat", cache))
    return max(min(left), 0)


def whole_memory() -> int:
    """Bytes that there are: the machine's, or a container's limit. The same from run to run."""
    there = [psutil.virtual_memory().total]
    for folder, (limit, _, _) in _limits():
        with suppress(OSError, ValueError):  # no such limit here, or `max`
            there.append(int((folder / limit).read_text()))
    return min(there)


def _limits() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Where limits may be: those of this process' control group and of all around it."""
    yield _GROUPS / "memory", _OLD
    own = Path()
    with suppress(OSError):
        lines = _OWN_GROUP.read_text().splitlines()
        own = next((Path(line[4:]) for line in lines if line.startswith("0::/")), own)
    for folder in (own, *own.parents):
        yield _GROUPS / folder, _NEW


def _droppable(stat: Path, name: str) -> int:
    """Bytes of a container's cache of files, which are given back when they are needed."""
    rows = (line.split() for line in stat.read_text().splitlines())
    return next((int(row[1]) for row in rows if row[0] == name), 0)


def _field(name: str) -> str:
    """A line of Linux' description of its first processor; empty on other systems."""
    with suppress(OSError):
        for line in _CPU.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
