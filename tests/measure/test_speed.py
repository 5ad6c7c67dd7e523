from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from attar.core.report import Figure
from attar.errors import AttarError, OutOfMemory
from attar.measure import probe as timing
from attar.measure import speed
from attar.measure.speed import probe
from attar.models import save
from tiny_models import tiny


def _saved(folder: Path, family: str, task: str | None = None) -> Path:
    save(tiny(family, task), folder)
    return folder


def _request(path: Path, task: str, precision: str = "float32") -> timing.Request:
    return timing.Request(timing.ModelSource(path=str(path)), task, 1, precision, "cpu")


def test_a_decoder_in_a_fresh_process(tmp_path: Path) -> None:
    ballast = torch.ones(1 << 30, dtype=torch.uint8)  # which `ru_maxrss` would inherit
    found = probe(_saved(tmp_path, "llama"), "causal-lm", threads=1, precision="bf16")
    assert set(found) == {"tokens_per_second", "latency_p50", "latency_p95", "peak_memory"}
    assert found["latency_p50"].value <= found["latency_p95"].value
    assert found["tokens_per_second"].value > 1
    note = found["tokens_per_second"].note
    assert "batch 1" in note
    assert "1 thread," in note
    assert "bfloat16" in note
    assert "after a warm-up of 3 tokens" in note
    assert len(ballast)
    assert 5e7 < found["peak_memory"].value < 1.2e9


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "masked-lm"), ("bert", "classification"), ("roberta", "classification")],
)
def test_encoders_are_timed_by_the_text(family: str, task: str, tmp_path: Path) -> None:
    found = timing.measure(_request(_saved(tmp_path, family, task), task))
    assert set(found) == {"texts_per_second", "latency_p50", "latency_p95", "peak_memory"}
    assert "batch 8" in found["texts_per_second"].note
    assert "batch 1" in found["latency_p50"].note
    assert "after a warm-up of 1 batch" in found["texts_per_second"].note


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "phi", "qwen3"])
def test_decoders_of_other_families(family: str, tmp_path: Path) -> None:
    found = timing.measure(_request(_saved(tmp_path, family), "causal-lm", "bf16"))
    assert found["tokens_per_second"].value > 1


def test_what_goes_wrong_there_is_readable_here(tmp_path: Path) -> None:
    with pytest.raises(AttarError, match=r"there is no model at.*measures\.speed"):
        probe(tmp_path / "none", "causal-lm")


def test_a_killed_process_and_one_that_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="memory"):
        speed._answer(subprocess.CompletedProcess([], -9, "", ""), "there")
    with pytest.raises(AttarError, match="Segmentation"):
        speed._answer(subprocess.CompletedProcess([], -11, "", "x\nSegmentation fault\n"), "there")


def test_noise_before_the_answer_is_passed_over() -> None:
    plain = Figure(value=1.0).model_dump_json()
    run = subprocess.CompletedProcess([], 0, f'a library speaks\n{{"a": {plain}}}\n', "")
    assert speed._answer(run, "there")["a"]["value"] == 1.0


def test_a_process_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LIMIT", 0.2)
    monkeypatch.setattr(speed, "_START", "import time; time.sleep(60)")
    with pytest.raises(AttarError, match="was stopped"):
        probe(tmp_path, "causal-lm")


def test_repeats_are_bounded_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(float(n) for n in range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    assert len(timing.repeat(lambda: [1.0])) == 4
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    assert len(timing.repeat(lambda: [1.0])) == 1
