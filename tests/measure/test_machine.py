from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from attar.measure import machine
from attar.measure.size import engine_size, total_size, weights_size


def test_the_environment_is_plain_data() -> None:
    facts = machine.environment()
    assert json.loads(json.dumps(facts)) == facts
    assert {"processor", "cores", "threads", "memory", "bf16", "torch", "attar"} <= facts.keys()


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        ("model name\t: A\nflags\t\t: fpu avx512_bf16 fsrm\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx512f avx512bw\n", False),  # mkldnn emulates it there
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512_bf16\n", True),
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512_bf16 amx_bf16\n", True),
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512_bf16\n", False),  # at half pace
    ],
)
def test_bf16_needs_fast_instructions(
    text: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "_CPU", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "_mkldnn_bf16", lambda: True)
    assert machine.fast_bf16("cpu") is fast
    monkeypatch.setattr(machine, "_mkldnn_bf16", lambda: False)
    assert not machine.fast_bf16("cpu")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("flags\t\t: fpu avx2 fsrm\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("flags\t\t: fpu avx2 avx_vnni\n", False),
        ("Features\t: fp asimd asimddp\n", False),
        ("", False),
    ],
)
def test_where_8_bit_products_overflow(
    text: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "_CPU", tmp_path / "cpuinfo")
    assert machine.saturates_int8() is found


def test_no_bf16_where_there_is_no_gpu() -> None:
    assert isinstance(machine.fast_bf16("cuda"), bool)
    assert not machine.fast_bf16("meta")


def test_free_memory_heeds_a_containers_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_GROUPS", tmp_path)
    (tmp_path / "own").write_text("0::/job/inner\n")
    monkeypatch.setattr(machine, "_OWN_GROUP", tmp_path / "own")
    inner = tmp_path / "job" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    assert 0 < machine.free_memory() <= psutil.virtual_memory().total
    (tmp_path / "job" / "memory.max").write_text("1000000\n")
    (tmp_path / "job" / "memory.current").write_text("700000\n")
    (tmp_path / "job" / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert machine.free_memory() == 350_000


def test_sizes(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"12345")
    (tmp_path / "config.json").write_bytes(b"{}")
    assert weights_size(tmp_path) == 5
    assert total_size(tmp_path) == 7
    assert weights_size(tmp_path / "a.safetensors") == total_size(tmp_path / "a.safetensors") == 5


@pytest.mark.parametrize(
    "name", ["model.gguf", "model.onnx", "openvino_model.bin", "model.tflite", "model.pte"]
)
def test_what_an_engine_needs_is_counted(tmp_path: Path, name: str) -> None:
    for other in ("tokenizer.json", "openvino_tokenizer.bin", "README.md", "program.json"):
        (tmp_path / other).write_bytes(b"12")
    (tmp_path / name).write_bytes(b"12345")
    assert engine_size(tmp_path) == 5
