"""SignRound starts where GPTQ ends, and leaves no block further from its original than that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attar.calibrate import matching
from attar.calibrate.view import BlockView
from attar.core.context import Context
from attar.core.registry import find
from attar.core.step import Task
from attar.data.example import Dataset, Example
from attar.ops.gram import damped
from attar.techniques.quantize import autoround
from conformance.test_every_kind import context
from tiny_models import texts, tiny

DATA: dict[str, Any] = {"sequences": 16, "length": 16, "batch": 2}


def rounded(kind: str, folder: Path, **settings: Any) -> tuple[dict[str, torch.Tensor], Context]:
    model = tiny("llama")
    ctx = context(model, folder)
    find(kind).model_validate({**DATA, **settings}).apply(model, ctx)
    return dict(model.module.state_dict()), ctx


@pytest.mark.parametrize("grid", ["int4-g32", "int2-g32-zp", "int2-g32-min"])
def test_no_block_is_further_than_at_the_start_and_some_are_nearer(
    grid: str, tmp_path: Path
) -> None:
    _, ctx = rounded("quantize/autoround", tmp_path, grid=grid, steps=40)
    before, after = (dict(ctx.curves[f"block error/{when}"]) for when in ("before", "after"))
    assert all(after[block] <= before[block] for block in before)
    assert sum(after.values()) < sum(before.values())


@pytest.mark.parametrize("grid", ["int4-g32", "int2-g32-zp"])
def test_blocks_that_are_no_nearer_for_it_are_left_as_gptq_has_them(
    grid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step moves every code by two, which helps no block; GPTQ's gram is damped by its mean."""
    monkeypatch.setattr(BlockView, "steady", lambda _view, _names, gram: damped(gram, 1.0))
    found, ctx = rounded("quantize/autoround", tmp_path / "own", grid=grid, steps=1)
    expected, _ = rounded("quantize/gptq", tmp_path / "gptq", grid=grid)
    assert ctx.curves["block error/before"] == ctx.curves["block error/after"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("kind", "task", "wanted"),
    [("llama", "causal-lm", 50), ("bert", "embedding", 200), ("bert", "classification", 200)],
)
def test_encoders_take_more_steps(
    kind: str, task: Task, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def match(view: BlockView, rates: Any, steps: int, *rest: Any) -> Any:
        seen.append(steps)
        return matching.match(view, rates, 1, *rest)

    monkeypatch.setattr(autoround, "match", match)
    model = tiny(kind, task)
    data = Dataset("train", [Example(text, None) for text in texts(4, 20)], "", ())
    settings = {"grid": "int8-channel", "sequences": 4, "length": 16, "batch": 2}
    ctx = Context(task, lambda _: data, lambda _: model)
    find("quantize/autoround").model_validate(settings).apply(model, ctx)
    assert set(seen) == {wanted}
