"""A classifier for one of several tasks whose heads share its trunk."""

from __future__ import annotations

import torch
from torch import nn

from attar.errors import UserError
from attar.layers import swap
from attar.layers.heads import NAME, Heads
from attar.models.load import with_labels
from attar.models.model import Model, shape_of
from attar.models.pooling import head_of


def answers_of(model: Model) -> str:
    """The name of the linear whose outputs are a classifier's answers."""
    name = head_of(model)
    return f"{name}.out_proj" if hasattr(model.module.get_submodule(name), "out_proj") else name


def trunk_width(model: Model) -> int:
    """How many numbers a head reads."""
    return shape_of(model.module.get_submodule(answers_of(model)))[1]


def for_task(model: Model, task: str) -> Model:
    """The same model, in place, as an ordinary classifier for one of its further tasks.

    Raises UserError where it has no head of that name.
    """
    heads = getattr(model.module, NAME, None)
    if not isinstance(heads, Heads) or task not in heads.labels:
        there = ", ".join(heads.labels) if isinstance(heads, Heads) else ""
        has = f"has heads for {there}" if there else "has the one head of its own"
        raise UserError(
            f"there is no head {task!r}: the model {has}. Leave `head` out, or name one"
        )
    labels, kept = heads.labels[task], heads.of(task)
    with torch.device("meta"):
        linear = nn.Linear(heads.width, len(labels))
    linear.weight, linear.bias = kept.weight, kept.bias
    swap(model.module, answers_of(model), linear)
    del model.module._modules[NAME]
    with_labels(model.config, "classification", labels)
    model.module.num_labels = len(labels)
    return Model(model.module, model.tokenizer, model.task, labels)
