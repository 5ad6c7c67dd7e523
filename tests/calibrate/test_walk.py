"""The walk: which linears go together, what reaches them, and that it leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attar.calibrate.rows import calibration
from attar.calibrate.view import BlockView
from attar.calibrate.walk import walk
from attar.core.context import Context
from attar.core.registry import find
from attar.core.scope import Scope
from attar.data.batches import Batch
from attar.data.example import Dataset, Example
from attar.models.model import Model, inference, weight_of
from attar.techniques.quantize.gptq import Gptq
from tiny_models import PAIRS, logits, texts, tiny

every = pytest.mark.parametrize(("family", "task"), PAIRS)


def context(model: Model, data: Dataset | None = None) -> Context:
    return Context(task=model.task, data=lambda _: data, model=lambda _: None)


def batches(padded: bool = True) -> list[Batch]:
    """Two batches of random tokens; the last row of each is padded."""
    generator = torch.Generator().manual_seed(0)
    made: list[Batch] = []
    for _ in range(2):
        ids = torch.randint(6, 100, (3, 10), generator=generator)
        mask = torch.ones_like(ids)
        if padded:
            mask[-1, 6:] = 0
        made.append(Batch(ids.masked_fill(mask == 0, 0), mask, ids))
    return made


def inputs_of(model: Model, names: list[str], made: list[Batch]) -> dict[str, Tensor]:
    """What reaches these linears in an ordinary run, real tokens only: [tokens, width]."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        model.module.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: found[name].append(given[0])
        )
        for name in names
    ]
    with inference("cpu", "float32"):
        for batch in made:
            model.hidden(batch)
    for handle in handles:
        handle.remove()
    masks = [batch.attention_mask.bool() for batch in made]
    return {
        name: torch.cat([part[mask] for part, mask in zip(parts, masks, strict=True)]).double()
        for name, parts in found.items()
    }


@every
def test_groups_hold_every_linear_once_with_the_gram_of_its_inputs(family, task) -> None:
    model, made = tiny(family, task), batches()
    expected = inputs_of(model, list(model.linears(Scope.linears())), made)
    seen: list[str] = []

    def visit(view: BlockView) -> None:
        ordinary = list(view.run())
        for names, gram in view.groups():
            for name in names:
                rows = expected[name]
                assert gram.count == len(rows)
                torch.testing.assert_close(gram.mean, (rows.T @ rows / len(rows)).float())
            seen.extend(names)
        assert view.outputs is not None
        for one, other in zip(view.outputs, ordinary, strict=True):
            assert torch.equal(one, other)

    walk(model, made, Scope.linears(), context(model), visit)
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", [3, 1, 2, 1]),
        ("gpt2", [1, 1, 1, 1]),
        ("phi3", [1, 1, 1, 1]),
        ("bert", [3, 1, 1, 1]),
    ],
)
def test_linears_that_share_their_inputs_go_together(family, sizes) -> None:
    model = tiny(family)
    found: list[list[int]] = []
    walk(
        model,
        batches(),
        Scope.linears(),
        context(model),
        lambda view: found.append([len(names) for names, _ in view.groups()]),
    )
    assert found == [sizes] * len(model.blocks)


@pytest.mark.parametrize("family", ["llama", "modernbert", "phi"])
def test_what_comes_after_a_changed_linear_is_given_what_it_will_have(family) -> None:
    model, made = tiny(family), batches()
    grams: dict[str, Tensor] = {}

    def visit(view: BlockView) -> None:
        for names, gram in view.groups():
            grams.update(dict.fromkeys(names, gram.mean))
            for name in names:
                weight_of(view.linears[name]).detach().mul_(0.5)

    walk(model, made, Scope.linears(), context(model), visit)
    for name, rows in inputs_of(model, list(grams), made).items():
        torch.testing.assert_close(grams[name], (rows.T @ rows / len(rows)).float())


@pytest.mark.parametrize(
    ("family", "task", "raised"),
    [
        ("bert", "classification", True),
        ("bert", "embedding", True),
        ("bert", "masked-lm", False),
        ("llama", "causal-lm", False),
    ],
)
def test_the_gram_of_attentions_outputs_is_raised_where_texts_are_answered_for(
    family, task, raised
) -> None:
    model = tiny(family, task)
    changed: set[str] = set()

    def visit(view: BlockView) -> None:
        for names, gram in view.groups():
            more = view.steady(names, gram.mean) - gram.mean
            if more.any():
                half = gram.mean.diagonal().mean() / 2
                assert torch.allclose(more, half * torch.eye(len(more)), atol=1e-6)
                changed.add(names[0].partition(f"{model.blocks_name}.")[2].partition(".")[2])

    walk(model, batches(), Scope.linears(), context(model), visit)
    assert changed == ({model.family.out} if raised else set())


def test_a_linear_may_be_replaced_by_another_kind_on_the_way() -> None:
    class Nothing(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.zeros(*inputs.shape[:-1], 32)

    model, made = tiny("llama"), batches()

    def visit(view: BlockView) -> None:
        for names, _ in view.groups():
            if names[0].endswith(("o_proj", "down_proj")):
                parent, _, child = names[0].rpartition(".")
                setattr(model.module.get_submodule(parent), child, Nothing())
        for one, other in zip(view.outputs or [], view.inputs, strict=True):
            assert torch.equal(one, other)  # nothing but the residual is left

    walk(model, made, Scope.linears(), context(model), visit)


def test_each_batch_goes_through_each_block_once_and_one_goes_first(monkeypatch) -> None:
    model, made, runs = tiny("llama"), batches(), 0
    whole = BlockView.forward

    def counted(view: BlockView, index: int) -> Tensor:
        nonlocal runs
        runs += 1
        return whole(view, index)

    monkeypatch.setattr(BlockView, "forward", counted)
    walk(model, made, Scope.linears(), context(model), lambda view: list(view.groups()).clear())
    assert runs == len(made) * len(model.blocks) + 1


def test_a_visitor_that_stops_half_way_leaves_no_trace() -> None:
    model, made = tiny("llama"), batches()
    before = logits(model)

    def visit(view: BlockView) -> None:
        for _ in view.groups():
            break

    walk(model, made, Scope.linears(), context(model), visit)
    assert not any("forward" in module.__dict__ for module in model.module.modules())
    assert torch.equal(logits(model), before)


def test_fewer_sequences_than_asked_for_are_said() -> None:
    model = tiny("llama")
    data = Dataset("train", [Example(text, None) for text in texts(count=4, length=20)], "", ())
    ctx = context(model, data)
    few = calibration(Gptq(sequences=100, length=16, batch=2), model, ctx)
    (warning,) = ctx.warnings
    assert f"{sum(batch.size for batch in few)} sequences of 16 tokens, and 100" in warning
    calibration(Gptq(sequences=2, length=16, batch=2), model, ctx)
    assert len(ctx.warnings) == 1


@pytest.mark.parametrize(
    ("kind", "more"),
    [("quantize/gptq", {"grid": "int3-g32"}), ("heal/blockwise", {}), ("quantize/awq", {})],
)
@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "masked-lm")])
def test_states_on_disk_make_the_same_weights(kind, more, family, task, tmp_path) -> None:
    """With a byte of memory each batch goes its way alone, and waits on disk."""
    found: list[dict[str, Tensor]] = []
    for memory, name in ((None, "much"), (1.0, "little")):
        model = tiny(family, task)
        (tmp_path / name).mkdir()
        data = Dataset("train", [Example(text, None) for text in texts(60, 14)], "", ())
        teacher = tiny(family, task)
        ctx = Context(task, lambda _, data=data: data, lambda _, teacher=teacher: teacher)
        ctx.scratch, ctx.memory = tmp_path / name, memory
        settings = {"sequences": 8, "length": 16, "batch": 2, **more}
        found.append(find(kind).model_validate(settings).apply(model, ctx).module.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
