"""Every quantizing kind on every sort of grid: saved, healed, mixed, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import attar
from attar.core.grid import Grid
from attar.core.registry import find
from attar.core.scope import Scope
from attar.errors import UserError
from attar.layers import QuantizedEmbedding, QuantizedLinear
from attar.models import Model, save
from attar.models.masks import mark
from conformance.test_every_kind import context
from tiny_models import logits, press, tiny

GRIDS = ("q4_1", "int2-g64-min", "nf4-g32", "fp8-e4m3", "mxfp4")
SMALL: dict[str, Any] = {"sequences": 4, "length": 16, "batch": 2}
KINDS: dict[str, dict[str, Any]] = {
    "quantize/rtn": {"embeddings": "fp8-e4m3"},
    "quantize/gptq": SMALL,
    "quantize/awq": SMALL,
    "quantize/autoround": {**SMALL, "batch": 1, "steps": 3},
    "heal/scales": {"steps": 4, "batch": 2, "length": 16},
    "heal/blockwise": {**SMALL, "batch": 1, "epochs": 2},
}


def applied(model: Model, kind: str, folder: Path, **settings: Any) -> Model:
    step = find(kind).model_validate({**KINDS.get(kind, {}), **settings})
    return step.apply(model, context(model, folder))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "dtype"), [("gpt2", torch.bfloat16), ("bert", torch.float32)])
def test_the_same_after_saving(
    family: str, dtype: torch.dtype, kind: str, grid: str, tmp_path: Path
) -> None:
    model = tiny(family, dtype=dtype)
    heals = kind.startswith("heal")
    if heals:
        model = press(model, grid)
    before = logits(model).float()
    pressed = applied(model, kind, tmp_path, **({} if heals else {"grid": grid}))
    parts = [m for m in pressed.module.modules() if isinstance(m, QuantizedLinear)]
    assert {part.grid.name for part in parts} == {Grid.parse(grid).name}
    after = logits(pressed)
    assert not torch.equal(after.float(), before)
    save(pressed, tmp_path / "saved")
    assert torch.equal(logits(attar.load(tmp_path / "saved")), after)


def test_a_table_of_embeddings_takes_any_grid(tmp_path: Path) -> None:
    for grid in GRIDS:
        pressed = applied(tiny("llama"), "quantize/rtn", tmp_path, grid=grid, embeddings=grid)
        table = pressed.module.get_input_embeddings()
        assert isinstance(table, QuantizedEmbedding)
        assert table.grid == Grid.parse(grid)


def test_bits_are_shared_out_among_unlike_grids(tmp_path: Path) -> None:
    grids = ["int2-g64-min", "nf4", "fp8-e4m3"]
    settings = {**SMALL, "grids": grids, "bits": 5, "measured": 2}
    pressed = applied(tiny("llama"), "quantize/mixed", tmp_path, **settings)
    parts = [m for m in pressed.module.modules() if isinstance(m, QuantizedLinear)]
    assert {part.grid.name for part in parts} <= {Grid.parse(name).name for name in grids}
    weights = sum(part.rows * part.width for part in parts)
    assert sum(part.rows * part.width * part.grid.bits for part in parts) <= 5 * weights


@pytest.mark.parametrize("kind", ["quantize/rtn", "quantize/gptq"])
def test_a_pruned_linear_is_not_put_on_a_grid_without_zero(kind: str, tmp_path: Path) -> None:
    model = tiny("llama")
    for linear in model.linears(Scope.linears()).values():
        mark(linear)
    with pytest.raises(UserError, match=r"was pruned.*Take int4-g32-zp"):
        applied(model, kind, tmp_path, grid="q4_1")


def test_healing_moves_minima(tmp_path: Path) -> None:
    model = press(tiny("llama"), "int2-g32-min")
    linears = [m for m in model.module.modules() if isinstance(m, QuantizedLinear)]
    before = [(part.codes.clone(), part.minima.clone()) for part in linears]  # type: ignore[union-attr]
    applied(model, "heal/scales", tmp_path, learning_rate=0.02)
    moved = 0
    for part, (codes, minima) in zip(linears, before, strict=True):
        assert torch.equal(part.codes, codes)
        moved += int((part.minima != minima).sum())
    assert moved
