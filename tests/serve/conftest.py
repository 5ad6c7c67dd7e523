from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from attar.models import save
from attar.serve.settings import Limits, Settings, Source
from serve.fakes import REAL, TEMPLATE, Running, running
from tiny_models import tiny


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models on disk: a decoder with a chat template, a classifier, and an encoder."""
    root, found = tmp_path_factory.mktemp("served"), {}
    for name, family, task in (
        ("writer", "llama", None),
        ("kinds", "bert", "classification"),
        ("vectors", "bert", None),
    ):
        model = tiny(family, task)
        if name == "writer":
            model.tokenizer.chat_template = TEMPLATE
        found[name] = root / name
        found[name].mkdir()
        save(model, found[name])
        model.tokenizer.chat_template = None
    return found


@pytest.fixture(scope="session")
def real(folders: dict[str, Path]) -> Iterator[Running]:
    """A server of these models."""
    sources = tuple(Source(name=name, path=str(path)) for name, path in folders.items())
    with running(Settings(models=sources, limits=Limits(batch=4)), REAL) as server:
        yield server


@pytest.fixture(scope="module")
def echo() -> Iterator[Running]:
    """A server of a model that answers with its prompt, and of encoders that count."""
    from serve.fakes import settings

    names = ("echo", "kinds", "vectors")
    limits = {"context": 400, "tokens": 300, "texts": 8, "queue": 100}
    with running(settings(*names, limits=limits)) as server:
        yield server
