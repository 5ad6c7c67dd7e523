"""Blocks that share their weights: on disk, in training, and against what would part them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attar.core.context import Context
from attar.core.registry import find
from attar.core.traits import SHARED
from attar.engine.plan import traits_of
from attar.errors import UserError
from attar.models import load, save
from attar.models.model import Model
from attar.models.source import Files
from engine.test_plan import told
from tiny_models import PAIRS, logits, tiny
from train.small import dataset, equal, weights

every = pytest.mark.parametrize(("family", "task"), PAIRS)


def context(model: Model, scratch: Path | None = None) -> Context:
    data = {"train": dataset(), "dev": dataset("dev", 12)}
    teacher = tiny(model.config.model_type, model.task)
    return Context(model.task, data.__getitem__, lambda _: teacher, scratch=scratch)


def share(model: Model, **settings: Any) -> Model:
    return find("prune/share").model_validate(settings).apply(model, context(model))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@every
def test_it_takes_fewer_bytes_and_reloads_bit_equal(family: str, task: Any, tmp_path: Path) -> None:
    scope = ["all", "!blocks[0]"] if family == "modernbert" else ["all"]
    model = tiny(family, task)
    save(model, tmp_path / "before")
    one_block = sum(p.numel() * 4 for p in model.blocks[2].parameters())
    share(model, distinct=1 if family == "modernbert" else 2, scope=scope)
    save(model, tmp_path / "after")
    lost = size(tmp_path / "before") - size(tmp_path / "after")
    assert lost == pytest.approx(one_block, rel=0.25)
    again = load(Files(tmp_path / "after"), task)
    assert torch.equal(logits(again), logits(model))
    shared = list(again.blocks[2].parameters())
    source = again.blocks[1 if family == "modernbert" else 0]
    assert {id(p) for p in shared} == {id(p) for p in source.parameters()}
    assert again.parameters_count() == model.parameters_count()


def test_orders_and_starts() -> None:
    plain = tiny("bert", num_hidden_layers=6)
    name = plain.family.up[0]

    def weight(model: Model, index: int) -> torch.Tensor:
        return model.blocks[index].get_submodule(name).weight

    for order, sources in (("cycle", [0, 1, 2, 0, 1, 2]), ("sequence", [0, 0, 2, 2, 4, 4])):
        for start in ("mean", "first"):
            model = share(tiny("bert", num_hidden_layers=6), distinct=3, order=order, start=start)
            for index, source in enumerate(sources):
                assert weight(model, index) is weight(model, source)
                group = [at for at, other in enumerate(sources) if other == source]
                wanted = torch.stack([weight(plain, at) for at in group]).double().mean(0)
                if start == "first":
                    wanted = weight(plain, source).double()
                assert torch.allclose(weight(model, index).double(), wanted, atol=1e-7)
    model = share(tiny("bert", num_hidden_layers=6), distinct=4, order="sequence")
    assert model.module.shared_blocks.sources == [0, 0, 2, 3, 3, 5]


def test_a_part_of_the_blocks_is_shared(tmp_path: Path) -> None:
    model = share(tiny("llama"), distinct=1, scope=["mlp"])
    first, second = model.blocks[0], model.blocks[1]
    assert first.mlp.up_proj.weight is second.mlp.up_proj.weight
    assert first.self_attn.q_proj.weight is not second.self_attn.q_proj.weight
    save(model, tmp_path)
    again = load(Files(tmp_path))
    assert torch.equal(logits(again), logits(model))
    traits = traits_of(again.module, again.facts())
    assert {name for name, own in traits.items() if SHARED in own} == {
        name for name in traits if ".mlp." in name
    }


@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("llama", "causal-lm")])
def test_it_trains_and_stays_shared(family: str, task: Any, tmp_path: Path) -> None:
    model = share(tiny(family, task), distinct=1)
    ctx = context(model)
    settings = {"steps": 20, "batch": 4, "length": 16, "learning_rate": 3e-3, "evaluate_every": 5}
    find("distill/logits").model_validate(settings).apply(model, ctx)
    losses = [value for _, value in ctx.curves["loss/dev"]]
    assert losses[-1] < losses[0]
    one, other = (list(model.blocks[index].parameters()) for index in (0, 2))
    assert all(a is b for a, b in zip(one, other, strict=True))
    save(model, tmp_path)
    again = load(Files(tmp_path), task)
    assert equal(weights(again), weights(model))


def test_a_shared_gradient_is_the_sum_over_the_blocks() -> None:
    model, apart = share(tiny("llama"), distinct=1), share(tiny("llama"), distinct=1)
    for index in (1, 2):  # the same numbers, in tensors of their own
        for part in apart.blocks[index].modules():
            for leaf, p in list(part.named_parameters(recurse=False)):
                setattr(part, leaf, torch.nn.Parameter(p.detach().clone()))
    ids = torch.arange(10, 30).view(2, 10)
    for one in (model, apart):
        one.module(input_ids=ids, labels=ids).loss.backward()
    whole = model.blocks[0].mlp.up_proj.weight.grad
    parts = sum(block.mlp.up_proj.weight.grad for block in apart.blocks)
    assert torch.allclose(whole, parts, atol=1e-5)


def test_what_works_block_by_block_is_refused_afterwards() -> None:
    shared = {"prune/share": {"distinct": 2, "id": "few"}}
    (problem,) = told(shared, {"quantize/rtn": {}})
    assert (
        "step 2 (quantize/rtn) needs weights that are not shared, but step 1 (prune/share)"
        in problem
    )
    assert told(shared, {"distill/hidden": {}}) == []
    assert told(shared, {"quantize/rtn": {"scope": "blocks[1] & linears"}}) == []
    assert len(told(shared, shared)) == 1
    assert told({"quantize/rtn": {}}, shared) != []
    assert told({"quantize/rtn": {}}, model=share(tiny("llama"), distinct=2)) != []


def test_an_adapter_of_one_block_is_none_of_several() -> None:
    shared = {"prune/share": {"distinct": 2, "id": "few"}}
    (problem,) = told(shared, {"distill/logits": {"update": {"lora": {}}}})
    assert "needs weights that are not shared" in problem
    assert told(shared, {"distill/logits": {"update": {"prefix": {}}}}) == []
    model = share(tiny("llama"), distinct=1)
    step = find("distill/logits").model_validate({"length": 16, "update": {"lora": {}}})
    with pytest.raises(UserError, match="shares its weight with another block"):
        step.apply(model, context(model))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("distill/on-policy", {"prompt": 6}),
        ("distill/multi-teacher", {"teachers": ["a", "b"]}),
        ("distill/continual", {}),
        ("distill/routed", {"teachers": ["a", "b"], "data": ["train", "train"]}),
        ("distill/online", {}),
        ("distill/sequence", {"new_tokens": 6, "prompts": 8}),
    ],
)
def test_what_trains_the_whole_keeps_blocks_shared(kind: str, settings: dict[str, Any]) -> None:
    assert told({"prune/share": {"distinct": 2}}, {kind: settings}) == []
    model = share(tiny("llama"), distinct=1)
    short = {"steps": 2, "batch": 4, "length": 16, "learning_rate": 3e-3}
    find(kind).model_validate({**short, **settings}).apply(model, context(model))
    one, other = (list(model.blocks[index].parameters()) for index in (0, 2))
    assert all(a is b for a, b in zip(one, other, strict=True))


def test_what_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="3 distinct blocks of the 3 in its scope share nothing"):
        share(tiny("llama"), distinct=3)
    with pytest.raises(UserError, match="block 1 is built unlike block 0"):
        share(tiny("modernbert"), distinct=1)
