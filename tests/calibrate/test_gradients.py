"""Squared gradients against autograd's own, one batch at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attar.calibrate.gradients import answer_sensitivity, row_sensitivity
from attar.core.context import Context
from attar.core.scope import Scope
from attar.data.batches import Batch
from attar.models.model import Model, inference, outputs_first
from tiny_models import batch, tiny


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # gpt2 keeps its weights the other way round
def test_rows_are_those_of_autograd(family: str) -> None:
    model = tiny(family, "causal-lm")
    batches = [batch(model, rows=1, seed=seed) for seed in range(3)]
    names = list(model.linears(Scope.linears()))
    ctx = Context(model.task, lambda _: None, lambda _: None)
    found = row_sensitivity(model, batches, names, ctx)
    wanted = {name: torch.zeros(len(found[name])) for name in names}
    for each in batches:
        labels = each.labels.where(each.attention_mask.bool(), -100)
        loss = model.module(
            input_ids=each.input_ids, attention_mask=each.attention_mask, labels=labels
        ).loss
        linears = [model.module.get_submodule(name) for name in names]
        gradients = torch.autograd.grad(loss, [linear.weight for linear in linears])
        for name, linear, gradient in zip(names, linears, gradients, strict=True):
            squares = outputs_first(linear, gradient).square()
            wanted[name] += squares.sum(1) / len(batches)
    for name in names:
        assert torch.allclose(found[name], wanted[name], rtol=1e-3, atol=1e-9), name
    assert all(p.grad is None and p.requires_grad for p in model.module.parameters())


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("llama", "causal-lm"),
        ("gpt2", "causal-lm"),
        ("bert", "masked-lm"),
        ("bert", "classification"),
    ],
)
def test_answers_move_as_far_as_was_foreseen(family: str, task: str) -> None:
    """The KL that noise on a linear's outputs costs, against half its Fisher information."""
    model = tiny(family, task)
    names = list(model.linears(Scope.linears()))
    ctx = Context(model.task, lambda _: None, lambda _: None)
    measured = [batch(model, rows=8, seed=seed) for seed in range(8)]
    felt = answer_sensitivity(model, measured, names, ctx)
    for name in names[:6]:
        cost, foreseen = 0.0, 0.0
        for each in (batch(model, rows=8, seed=seed) for seed in range(20, 28)):
            lost, noise = noisy(model, name, each)
            mask = each.attention_mask.bool()
            cost += float(lost[mask].sum() if task != "classification" else lost.sum())
            foreseen += float((felt[name] * noise[mask].square()).sum()) / 2
        assert 0.4 < cost / foreseen < 2.5, name


def noisy(model: Model, name: str, each: Batch) -> tuple[Tensor, Tensor]:
    """KL of every answer from what it is without noise on a linear's outputs, and the noise."""
    added: list[Tensor] = []

    def add(_: object, __: object, output: Tensor) -> Tensor:
        added.append(1e-3 * torch.randn(output.shape, generator=generator))
        return output + added[-1]

    generator = torch.Generator().manual_seed(0)
    before = answers(model, each)
    handle = model.module.get_submodule(name).register_forward_hook(add)
    after = answers(model, each)
    handle.remove()
    return (before.exp() * (before - after)).sum(-1), added[0]


def answers(model: Model, each: Batch) -> Tensor:
    with inference("cpu", "float32"):
        if model.task == "classification":
            return model.logits(each).double().log_softmax(-1)
        return model.head(model.hidden(each)).double().log_softmax(-1)
