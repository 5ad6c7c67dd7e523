"""Blocks that a walk is done with: a walk that was killed goes on after the last of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attar.calibrate.kept import KeptBlocks
from attar.calibrate.view import BlockView
from attar.core import registry
from attar.core.context import Context
from attar.data.example import Dataset, Example
from attar.models.mapped import mapped
from attar.models.masks import is_masked
from tiny_models import texts, tiny

SMALL: dict[str, Any] = {"sequences": 4, "length": 16, "batch": 2}
KINDS: dict[str, dict[str, Any]] = {
    "lowrank/balanced": {"keep": 0.5, "measured": 2},
    "lowrank/residual": {"rank": 4, "grid": "int3-g32"},
    "lowrank/whitened": {"keep": 0.5},
    "prune/sparsegpt": {"pattern": "2:4"},
    "prune/wanda": {},
    "quantize/autoround": {"grid": "int4-g32", "batch": 1, "steps": 4},
    "quantize/awq": {"grid": "int4-g32"},  # changes norms too
    "quantize/gptq": {"grid": "int4-g32-zp", "embeddings": "int8-channel"},
    "quantize/mixed": {"bits": 3.5, "measured": 2},
    "quantize/smoothquant": {},
    "quantize/static": {},
}


class Killed(Exception):
    """Stands for a kill."""


def press(
    kind: str, scratch: Path | None, stop_at: int | None = None, memory: float | None = None
) -> tuple[Any, Context, int]:
    """A tiny model after one step; how many blocks were visited."""
    data = Dataset("train", [Example(text, None) for text in texts(count=40, length=20)], "", ())
    ctx = Context("causal-lm", lambda _: data, lambda _: None, scratch=scratch, memory=memory)
    model, visited = tiny("llama"), 0
    name = "watched" if kind == "prune/wanda" else "groups"
    groups = getattr(BlockView, name)

    def counted(view: BlockView, *args: Any) -> Any:
        nonlocal visited
        if view.index == stop_at:
            raise Killed
        visited += 1
        return groups(view, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockView, name, counted)
        step = registry.find(kind).model_validate({**SMALL, **KINDS[kind]})
        if stop_at is None:
            return step.apply(model, ctx), ctx, visited
        with pytest.raises(Killed):
            step.apply(model, ctx)
    return model, ctx, visited


@pytest.mark.parametrize("memory", [None, 1.0])  # with a byte, states are on disk
@pytest.mark.parametrize("kind", KINDS)
def test_a_walk_that_was_killed_goes_on_and_ends_bit_equal(
    kind: str, memory: float | None, tmp_path: Path
) -> None:
    calm, calm_ctx, blocks = press(kind, None)
    press(kind, tmp_path, stop_at=2, memory=memory)
    resumed, ctx, visited = press(kind, tmp_path, memory=memory)
    walks = 2 if kind == "lowrank/balanced" else 1
    again = 0 if kind == "prune/wanda" else 2  # it feeds its blocks with what they were
    looks = 2 if kind == "quantize/smoothquant" else 1  # at each block: before scales, and after
    assert (blocks, visited) == (3 * walks * looks, (3 * walks - again) * looks)
    assert not list(tmp_path.rglob("states"))
    wanted, found = calm.module.state_dict(), resumed.module.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert (ctx.notes, ctx.curves) == (calm_ctx.notes, calm_ctx.curves)
    masked = [name for name, part in calm.module.named_modules() if is_masked(part)]
    assert masked == [name for name, part in resumed.module.named_modules() if is_masked(part)]


def test_a_block_that_was_kept_is_mapped_from_its_file(tmp_path: Path) -> None:
    model, _, _ = press("quantize/gptq", tmp_path)
    (tmp_path / "blocks" / "00000.safetensors").stat()
    assert all(mapped(model.blocks))


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    calm, _, _ = press("quantize/gptq", None)
    press("quantize/gptq", tmp_path)
    (tmp_path / "blocks" / "00001.safetensors").write_bytes(b"\x00" * 20)
    again, _, visited = press("quantize/gptq", tmp_path)
    assert visited == 1
    wanted, found = calm.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_a_full_disk_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attar.calibrate.kept.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        KeptBlocks(tmp_path).keep(0, tiny("llama").blocks[0], 1.0)
    assert not list(tmp_path.iterdir())
