"""Three techniques that do nothing, in place of the real ones, which need torch."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from attar.core import registry
from attar.core.grid import GridName
from attar.core.scope import Scope
from attar.core.step import DataRef, ModelRef, Step
from attar.errors import UserError


class Rtn(Step, kind="quantize/rtn"):
    grid: GridName = Field(default="int8-channel")
    scope: Scope = Field(default=Scope.linears())


class Gptq(Step, kind="quantize/gptq"):
    grid: GridName = Field(default="q4_0")
    data: DataRef = Field(default="train")
    sequences: int = Field(default=32, ge=1, le=64)
    scope: Scope = Field(default=Scope.linears())


class Depth(Step, kind="prune/depth"):
    keep: int = Field(ge=1, description="blocks to keep")
    data: DataRef | None = None


class Logits(Step, kind="distill/logits"):
    data: DataRef = "train"
    teacher: ModelRef | None = None
    temperature: float = Field(default=2.0, gt=0)
    share: int | float = 1
    direction: Literal["forward", "reverse"] = "forward"
    mix: dict[str, float] = {}
    others: tuple[ModelRef, ...] = ()


TECHNIQUES = {t.kind: t for t in (Rtn, Gptq, Depth, Logits)}


def _find(kind: str) -> type[Step]:
    if kind in TECHNIQUES:
        return TECHNIQUES[kind]
    hint = registry.nearest(kind, sorted(TECHNIQUES)) or "."
    raise UserError(f"no technique is called {kind!r}{hint} `attar list` shows them all")


@pytest.fixture
def techniques(monkeypatch):
    """Put the fake techniques in the registry."""
    monkeypatch.setattr(registry, "kinds", lambda: sorted(TECHNIQUES))
    monkeypatch.setattr(registry, "find", _find)
    return TECHNIQUES
