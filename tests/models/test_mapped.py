"""Weights mapped from a file: found, given back, and read again as they were."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from attar.core.recipe import ModelSource
from attar.core.scope import Scope
from attar.models import load, save
from attar.models.mapped import mapped, release
from attar.models.model import set_weight, weight_of
from tiny_models import logits, press, tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")


def resident(spans: list[tuple[int, int]]) -> int:
    """Kilobytes of these addresses' mappings that are in memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            low, high = (int(end, 16) for end in first.split("-"))
            inside = any(low < stop and start < high for start, stop in spans)
        elif inside and first == "Rss:":
            found += int(line.split()[1])
    return found


def test_weights_of_a_file_are_given_back_and_come_again(tmp_path: Path) -> None:
    save(tiny("llama", hidden_size=256, intermediate_size=1024), tmp_path / "model")
    model = load(ModelSource(path=str(tmp_path / "model")))
    before = logits(model)
    spans = [span for block in mapped(model.blocks) for span in block]
    assert len(spans) == sum(1 for _ in model.blocks.parameters())
    held = resident(spans)
    assert held > 3000
    release(spans)
    assert resident(spans) < held / 2
    assert torch.equal(logits(model), before)


def test_a_weight_that_was_changed_keeps_its_change(tmp_path: Path) -> None:
    save(tiny("llama"), tmp_path / "model")
    model = load(ModelSource(path=str(tmp_path / "model")))
    with torch.no_grad():
        for weight in model.blocks.parameters():
            weight.fill_(0.25)
    for spans in mapped(model.blocks):
        release(spans)
    assert all((weight == 0.25).all() for weight in model.blocks.parameters())


def test_weights_that_are_in_no_file_are_left_alone() -> None:
    assert mapped(tiny("llama").blocks) == [[], [], []]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_weight_that_is_put_in_writes_to_no_file_pages(tmp_path: Path, family: str) -> None:
    save(tiny(family), tmp_path / "model")
    model = load(ModelSource(path=str(tmp_path / "model")))
    linears = model.linears(Scope.linears())
    (before,) = mapped([model.module])
    for linear in linears.values():
        set_weight(linear, weight_of(linear) * 2)
    (after,) = mapped([model.module])
    assert len(after) == len(before) - len(linears)
    again = load(ModelSource(path=str(tmp_path / "model"))).linears(Scope.linears())
    for name, linear in linears.items():
        assert torch.equal(weight_of(linear), weight_of(again[name]) * 2)


def test_codes_are_given_back_too(tmp_path: Path) -> None:
    """They are no parameters."""
    model = tiny("llama", hidden_size=256, intermediate_size=1024)
    save(press(model, "int8-channel"), tmp_path / "model")
    model = load(ModelSource(path=str(tmp_path / "model")))
    before = logits(model)
    spans = [span for block in mapped(model.blocks) for span in block]
    codes = sum(b.nbytes for b in model.blocks.buffers() if b.dtype == torch.uint8)
    assert sum(high - low for low, high in spans) >= codes > 0
    held = resident(spans)
    release(spans)
    assert resident(spans) < held
    assert torch.equal(logits(model), before)
