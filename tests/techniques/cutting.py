"""Steps that cut tiny models, and what such a step has to keep to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import attar
from attar.core.context import Context
from attar.core.registry import find
from attar.data.example import Dataset, Example
from attar.models import Model, save
from attar.models.load import config_of, skeleton
from attar.models.source import Files
from attar.models.uneven import keep_groups, keep_neurons
from tiny_models import logits, shuffled, texts, tiny

SMALL: dict[str, Any] = {"sequences": 4, "length": 16, "batch": 2}


def context(model: Model, scratch: Path | None = None) -> Context:
    labels = model.labels or (None,)
    rows = [Example(t, labels[n % len(labels)]) for n, t in enumerate(texts(count=40, length=16))]
    data = Dataset("train", rows, "", tuple(model.labels))
    return Context(
        model.task, lambda _: data, lambda _: tiny(model.config.model_type), scratch=scratch
    )


def applied(model: Model, kind: str, **settings: Any) -> Model:
    """The model after one step, of little data where it reads any."""
    cls = find(kind)
    kept = {name: value for name, value in SMALL.items() if name in cls.model_fields}
    step = cls.model_validate({**kept, **settings})
    assert list(step.check(model.facts())) == []
    return step.apply(model, context(model))


def pressed(step, model):
    """The step's result and its context; its facts are those that the plan foresaw."""
    facts = model.facts()
    assert list(step.check(facts)) == []
    ctx = context(model)
    result = step.apply(model, ctx)
    assert list(step.reshape(facts)) == result.facts()
    return result, ctx


def uneven(family: str = "llama", task: Any = None) -> Model:
    """A model whose blocks keep 40, 64 and 24 neurons, and two heads, all, and one's group."""
    model = tiny(family, task)
    for block, kept in enumerate((40, 64, 24)):
        keep_neurons(model, block, shuffled(64, block)[:kept])
    if family not in ("gpt2", "phi3"):
        keep_groups(model, 0, [model.sizes.keys - 1])
    return model


def reloaded(model: Model, folder: Path) -> Model:
    """The model from its files, bit-equal, as its headers say."""
    save(model, folder)
    again = attar.load(folder)
    assert torch.equal(logits(again), logits(model))
    empty = skeleton(config_of(Files(folder)), model.task)
    assert empty.facts() == again.facts() == model.facts()
    assert empty.parameters_count() == again.parameters_count() == model.parameters_count()
    return again
