"""Steps without data: block by block, what is done is on disk, and a killed one goes on there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attar.calibrate.linears import each_linear
from attar.core.context import Context
from attar.core.registry import find
from attar.core.scope import Scope
from attar.models.mapped import mapped
from attar.models.model import set_weight, weight_of
from tiny_models import logits, tiny

STEPS: dict[str, dict[str, Any]] = {
    "lowrank/svd": {"keep": 0.5},
    "prune/magnitude": {},
    "quantize/dynamic": {},
    "quantize/hqq": {"grid": "int4-g32-min"},
    "quantize/rtn": {"grid": "int4-g32"},
}


def context(scratch: Path | None) -> Context:
    if scratch is not None:
        scratch.mkdir(exist_ok=True)
    return Context("causal-lm", lambda _: None, lambda _: None, scratch=scratch)  # type: ignore[arg-type,return-value]


def halving(model: Any, seen: list[str], until: int = 1000) -> Callable[[str], list[float]]:
    """Halves every weight, and is killed when it has done so many."""

    def change(name: str) -> list[float]:
        if len(seen) == until:
            raise KeyboardInterrupt
        seen.append(name)
        linear = model.module.get_submodule(name)
        set_weight(linear, weight_of(linear).detach() / 2)
        return [float(len(name))]

    return change


def test_a_killed_one_goes_on_after_the_last_whole_block(tmp_path: Path) -> None:
    whole, first, second = (tiny("llama") for _ in range(3))
    ctx, seen = context(tmp_path / "scratch"), list[str]()
    wanted = each_linear(whole, Scope.linears(), context(None), halving(whole, []))
    with pytest.raises(KeyboardInterrupt):
        each_linear(first, Scope.linears(), ctx, halving(first, [], 17))  # in the third block
    found = each_linear(second, Scope.linears(), ctx, halving(second, seen))
    assert {name.split(".")[2] for name in seen} == {"2"}
    assert found == wanted
    assert torch.equal(logits(second), logits(whole))


def test_linears_outside_the_blocks_are_changed_and_nothing_else(tmp_path: Path) -> None:
    model = tiny("llama", tie_word_embeddings=False)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    seen: list[str] = []
    scope = Scope(patterns=("lm_head", "*.1.mlp.up_proj"))
    each_linear(model, scope, context(tmp_path / "scratch"), halving(model, seen))
    assert sorted(seen) == ["lm_head", "model.layers.1.mlp.up_proj"]
    for name, tensor in model.module.state_dict().items():
        halved = name.removesuffix(".weight") in seen
        assert torch.equal(tensor, before[name] / 2 if halved else before[name]), name


@pytest.mark.parametrize("kind", STEPS)
def test_what_is_done_is_mapped_from_disk_and_the_same(kind: str, tmp_path: Path) -> None:
    step = find(kind).model_validate(STEPS[kind])
    kept, plain = tiny("llama"), tiny("llama")
    step.apply(kept, context(tmp_path / "scratch"))
    step.apply(plain, context(None))
    assert torch.equal(logits(kept), logits(plain))
    assert len(list((tmp_path / "scratch" / "blocks").iterdir())) == len(kept.blocks)
    held = [[*block.parameters(), *block.buffers()] for block in kept.blocks]
    assert [len(spans) for spans in mapped(kept.blocks)] == list(map(len, held))
    assert [len(spans) for spans in mapped(plain.blocks)] == [0] * len(held)
