"""Squared gradients against autograd's own, one batch at a time."""

from __future__ import annotations

import pytest
import torch

from attar.calibrate.gradients import row_sensitivity
from attar.core.context import Context
from attar.core.scope import Scope
from attar.models.model import outputs_first
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
