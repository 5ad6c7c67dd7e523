"""A Context for small trainings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tiny_models
from attar.core.context import Context
from attar.core.step import Task
from train.small import dataset


@pytest.fixture
def context() -> Callable[..., Context]:
    """A Context with `train` and `dev`, and a teacher where one is given."""

    def make(task: Task = "causal-lm", **more: Any) -> Context:
        data = {"train": dataset(), "dev": dataset("dev", 12)}
        family = "llama" if task == "causal-lm" else "bert"
        more.setdefault("model", lambda _: tiny_models.tiny(family, task, seed=1))
        return Context(task, more.pop("data", data.__getitem__), **more)

    return make
