"""Solvers compute where their inputs are: nothing they make lies on the default device.

There is no GPU here. With `meta` as the default device, a tensor that is made without saying
where lies on it, and whatever is computed of that and of the model's own tensors is refused.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attar.calibrate.rows
from attar.core import registry
from attar.core.context import Context
from attar.data.example import Dataset, Example
from tiny_models import logits, texts, tiny

DATA: dict[str, Any] = {"sequences": 4, "length": 16, "batch": 2}
KINDS: dict[str, dict[str, Any]] = {
    "lowrank/balanced": {**DATA, "keep": 0.5, "measured": 2},
    "lowrank/fisher": {**DATA, "keep": 0.5},
    "lowrank/residual": {**DATA, "rank": 4, "grid": "int3-g32"},
    "lowrank/svd": {"keep": 0.5},
    "lowrank/whitened": {**DATA, "keep": 0.5},
    "prune/magnitude": {},
    "prune/sparsegpt": {**DATA, "pattern": "2:4"},
    "prune/wanda": DATA,
    "quantize/autoround": {**DATA, "batch": 1, "steps": 2},
    "quantize/awq": DATA,
    "quantize/dynamic": {},
    "quantize/gptq": {**DATA, "grid": "int4-g32-zp"},
    "quantize/mixed": {**DATA, "measured": 2, "bits": 3.5},
    "quantize/rtn": {"grid": "int4-g32"},
    "quantize/smoothquant": DATA,
    "quantize/static": DATA,
}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_made_elsewhere(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    rows = [Example(text, None) for text in texts(count=40, length=16)]
    data = Dataset("train", rows, "", ())
    ctx = Context(model.task, lambda _: data, lambda _: None)
    step = registry.find(kind).model_validate(KINDS[kind])
    if hasattr(step, "data"):
        batches = attar.calibrate.rows.calibration(step, model, ctx)  # data is made on the CPU
        module: Any = __import__(f"attar.techniques.{kind.replace('/', '.')}", fromlist=["_"])
        name = next(name for name in vars(module) if name.startswith("calibration"))
        monkeypatch.setattr(module, name, lambda *_: batches)
    with torch.device("meta"):
        pressed = step.apply(model, ctx)
    tensors = [*pressed.module.parameters(), *pressed.module.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert logits(pressed).isfinite().all()
