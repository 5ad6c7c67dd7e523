"""Artifacts reload in a fresh process, where nothing of this one is left over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attar.layers import LowRank, swap
from attar.models import Model, save
from attar.models.model import weight_of
from attar.models.resize import drop_blocks, narrow
from attar.ops.factor import factored
from fresh_process import REGISTERED, WITHOUT_ATTAR, Saved, answers
from tiny_models import batch, press, tiny


def shallower(model: Model) -> Model:
    drop_blocks(model, [1])
    return model


def narrower(model: Model) -> Model:
    return narrow(model, [[0, 1]] * 3, [list(range(40))] * 3, list(range(16)))


def thinner(model: Model) -> Model:
    """Two factors in the place of each linear of a feed-forward part."""
    for fact in model.facts():
        if fact.role == "mlp" and fact.linear:
            linear: Any = model.module.get_submodule(fact.name)
            factors = factored(weight_of(linear).detach(), 8)
            new = LowRank(*fact.shape, 8, linear.bias is not None)
            swap(model.module, fact.name, new.fill(factors.up, factors.down, linear.bias))
    return model


Change = Callable[[Model], Model]
ORDINARY: dict[str, tuple[str, Any, Change]] = {
    "shallower decoder": ("llama", "causal-lm", shallower),
    "narrower decoder": ("llama", "causal-lm", narrower),
    "shallower windowed decoder": ("gemma3_text", "causal-lm", shallower),
    "narrower decoder of Conv1D": ("gpt2", "causal-lm", narrower),
    "shallower encoder": ("bert", "masked-lm", shallower),
    "narrower classifier": ("bert", "classification", narrower),
}
SWAPPED: dict[str, tuple[str, Any, Change]] = {
    "quantized decoder": ("llama", "causal-lm", press),
    "quantized scaled decoder": ("gemma2", "causal-lm", press),
    "quantized encoder": ("bert", "masked-lm", press),
    "quantized classifier": ("bert", "classification", press),
    "quantized shallower decoder": ("llama", "causal-lm", lambda model: press(shallower(model))),
    "factorized decoder": ("llama", "causal-lm", thinner),
    "factorized classifier": ("bert", "classification", thinner),
}
Pair = tuple[Tensor, Tensor]


def compared(
    cases: dict[str, tuple[str, Any, Change]], first: str, folder: Path
) -> dict[str, Pair]:
    """The logits of each changed model: here, and from one fresh process."""
    saved: dict[str, Saved] = {}
    here: dict[str, Tensor] = {}
    for name, (family, task, change) in cases.items():
        model = change(tiny(family, task))
        save(model, folder / name)
        given = batch(model)
        inputs = {"input_ids": given.input_ids, "attention_mask": given.attention_mask}
        saved[name] = Saved(folder / name, task, inputs)
        with torch.no_grad():
            here[name] = model.module(**inputs).logits
    there = answers(saved, first, folder)
    return {name: (here[name], there[name]) for name in cases}


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return compared(ORDINARY, WITHOUT_ATTAR, tmp_path_factory.mktemp("ordinary"))


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return compared(SWAPPED, REGISTERED, tmp_path_factory.mktemp("swapped"))


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_model_needs_no_attar(name: str, ordinary: dict[str, Pair]) -> None:
    here, there = ordinary[name]
    assert torch.equal(here, there)


@pytest.mark.parametrize("name", SWAPPED)
def test_one_import_reloads_modules_of_attars_own(name: str, swapped: dict[str, Pair]) -> None:
    here, there = swapped[name]
    assert torch.equal(here, there)
