"""The divergence of one changed part against changing it in the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attar.calibrate.sensitivity import EVERY, divergences
from attar.calibrate.table import label_of, parts_of, to_table
from attar.core.context import Context
from attar.core.registry import find
from attar.core.scope import Scope
from attar.data.example import Dataset, Example
from attar.layers import QuantizedLinear
from attar.models.model import Model, set_weight, weight_of
from attar.ops.divergence import forward_kl
from tiny_models import PAIRS, batch, logits, texts, tiny


def halved(model: Model) -> Any:
    def change(names: list[str]) -> None:
        for name in names:
            linear = model.module.get_submodule(name)
            set_weight(linear, weight_of(linear) / 2)

    return change


@pytest.mark.parametrize("by", ["role", "linear"])
@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_as_if_the_whole_model_were_changed(family: str, task: Any, by: Any) -> None:
    exact = {
        "dtype": torch.float64
    }  # what halving moves in some parts is below float32's last digit
    model = tiny(family, task, **exact)
    before = logits(model)
    given = batch(model, rows=3)
    if task == "masked-lm":
        given.labels = given.input_ids.where(given.attention_mask.bool(), -100)
    parts = parts_of(model, Scope.linears(), by)
    linears = model.linears(Scope.linears())
    assert sorted(name for part in parts for name in part.names) == sorted(linears)
    if by == "role":
        assert {(part.block, part.name) for part in parts} == {
            (block, role) for block in range(len(model.blocks)) for role in ("attention", "mlp")
        }
    else:
        assert len(parts) == len(linears)
    ctx = Context(task, lambda _: None, lambda _: None)
    found = divergences(model, [given], parts, {"halved": halved(model)}, ctx)["halved"]
    assert torch.equal(logits(model), before)  # nothing of it is left
    for part, value in list(zip(parts, found, strict=True))[:: 3 if by == "role" else 5]:
        changed = tiny(family, task, **exact)
        halved(changed)(list(part.names))
        assert value == pytest.approx(_divergence(model, changed, given), rel=1e-3, abs=1e-7)
        assert value > 0


def _divergence(model: Model, changed: Model, given: Any) -> float:
    with torch.no_grad():
        theirs, own = model.logits(given), changed.logits(given)
    if model.task == "causal-lm":
        theirs, own = theirs[:, EVERY - 1 :: EVERY], own[:, EVERY - 1 :: EVERY]
    if model.task == "masked-lm":
        judged = given.labels != -100
        theirs, own = theirs[judged], own[judged]
    return float(forward_kl(own, theirs))


@pytest.mark.parametrize("bits", [2.0, 2.7, 3.5, 8.0])
@pytest.mark.parametrize("family", ["llama", "phi"])  # phi's attention and MLP share an input
def test_mixed_keeps_to_its_average(family: str, bits: float) -> None:
    model = tiny(family)
    rows = [Example(text, None) for text in texts(count=40, length=16)]
    data = Dataset("train", rows, "", ())
    ctx = Context(model.task, lambda _: data, lambda _: model)
    grids = ("int2-g32", "int3-g32", "int4-g32", "int8-g32")
    settings = {"sequences": 4, "length": 16, "bits": bits, "grids": grids}
    step = find("quantize/mixed").model_validate(settings)
    assert list(step.check(model.facts())) == []
    pressed = step.apply(model, ctx)
    linears = [part for part in pressed.module.modules() if isinstance(part, QuantizedLinear)]
    weights = sum(part.rows * part.width for part in linears)
    spent = sum(part.rows * part.width * part.grid.bits for part in linears) / weights
    assert bits - 0.7 < spent <= bits
    assert ctx.notes["average bits"] == pytest.approx(spent, abs=1e-3)
    assert len([curve for curve in ctx.curves if curve.startswith("block divergence")]) == 2 * 4


def test_mixed_chooses_by_a_table(tmp_path: Path) -> None:
    """One that says that all depends on the last block's MLP."""
    model, table = tiny("llama"), tmp_path / "sensitivity.tsv"
    data = Dataset("train", [Example(text, None) for text in texts(count=40, length=16)], "", ())
    ctx = Context(model.task, lambda _: data, lambda _: model)
    parts, grids = parts_of(model, Scope.linears()), ("int2-g32", "int8-g32")
    last = [part.block == 2 and part.name == "mlp" for part in parts]
    labels = [label_of("quantize/rtn", {"grid": grid}) for grid in grids]
    columns = [9.0 * it for it in last], [0.0] * len(parts)
    table.write_text(to_table(parts, dict(zip(labels, columns, strict=True))))
    settings = {"sequences": 4, "length": 16, "bits": 4, "grids": grids, "sensitivity": str(table)}
    step = find("quantize/mixed").model_validate(settings)
    assert list(step.check(model.facts())) == []
    pressed = step.apply(model, ctx)
    bits = {part.names[0]: pressed.module.get_submodule(part.names[0]).grid.bits for part in parts}
    assert [bits[part.names[0]] for part, it in zip(parts, last, strict=True) if it] == [8]
    assert 2 in bits.values()


def test_mixed_chooses_for_each_linear_by_a_table_of_linears(tmp_path: Path) -> None:
    """One that says that all depends on what the first block's queries are made of."""
    model, table = tiny("llama"), tmp_path / "sensitivity.tsv"
    data = Dataset("train", [Example(text, None) for text in texts(count=40, length=16)], "", ())
    ctx = Context(model.task, lambda _: data, lambda _: model)
    parts, grids = parts_of(model, Scope.linears(), "linear"), ("int2-g32", "int8-g32")
    labels = [label_of("quantize/rtn", {"grid": grid}) for grid in grids]
    columns = [9.0 if part is parts[0] else 0.0 for part in parts], [0.0] * len(parts)
    table.write_text(to_table(parts, dict(zip(labels, columns, strict=True)), "linear"))
    settings = {"sequences": 4, "length": 16, "bits": 3, "grids": grids, "sensitivity": str(table)}
    step = find("quantize/mixed").model_validate(settings)
    assert list(step.check(model.facts())) == []
    pressed = step.apply(model, ctx)
    first = "model.layers.0.self_attn"
    assert pressed.module.get_submodule(f"{first}.q_proj").grid.bits == 8
    assert pressed.module.get_submodule(f"{first}.k_proj").grid.bits == 2
    assert (0, 9.0) in ctx.curves["block divergence, self_attn.q_proj alone on int2-g32"]


def test_mixed_without_a_column_for_each_grid_is_refused(tmp_path: Path) -> None:
    model, table = tiny("llama"), tmp_path / "sensitivity.tsv"
    parts = parts_of(model, Scope.linears())
    table.write_text(to_table(parts, {"quantize/rtn grid=int2-g64": [0.0] * len(parts)}))
    step = find("quantize/mixed").model_validate({"sensitivity": str(table)})
    (problem,) = step.check(model.facts())
    assert "has no column 'quantize/rtn grid=int3-g64'" in problem


def test_mixed_below_its_smallest_grid_is_refused() -> None:
    step = find("quantize/mixed").model_validate({"bits": 1.5})
    assert "the smallest of which has 2" in next(iter(step.check(tiny("llama").facts())))
