"""Heads of further tasks on one trunk: kept beside the model's own, and put in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.layers.swap import dtype_of, swappable

NAME = "heads"


class Head(nn.Module):
    """Answers of one task: [..., width] -> logits [..., classes].

    No linear in name, so that nothing that walks a model's linears takes it for one of the task
    that the model is loaded for.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, states: Tensor) -> Tensor:
        return functional.linear(states, self.weight, self.bias)


@swappable
class Heads(nn.ModuleList):
    """One head for each further task, in order; `labels` are the classes of each, by name."""

    def __init__(self, width: int, labels: Mapping[str, Sequence[str]]) -> None:
        super().__init__(Head(width, len(names)) for names in labels.values())
        self.width = width
        self.labels = {task: tuple(names) for task, names in labels.items()}

    def of(self, task: str) -> Head:
        """The head of a task. Raises KeyError where there is none."""
        return dict(zip(self.labels, self, strict=True))[task]  # pyright: ignore[reportReturnType]

    def spec(self) -> dict[str, Any]:
        """The trunk's width, and the classes of each task."""
        return {"width": self.width, "labels": [[t, list(n)] for t, n in self.labels.items()]}

    @classmethod
    def rebuild(cls, spec: dict[str, Any], model: nn.Module) -> nn.Module:
        """The same heads, empty, in the dtype of the model's other weights."""
        return cls(spec["width"], dict(spec["labels"])).to(dtype_of(model))


@contextmanager
def answering(module: nn.Module, name: str, head: nn.Module) -> Iterator[None]:
    """Let another head stand where the module called `name` is, as long as this lasts."""
    parent, _, leaf = name.rpartition(".")
    owner = module.get_submodule(parent)
    own = owner._modules[leaf]
    owner._modules[leaf] = head
    try:
        yield
    finally:
        owner._modules[leaf] = own
