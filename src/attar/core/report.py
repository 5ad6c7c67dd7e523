"""Typed numbers of a run: the original and every stage, side by side."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), ser_json_inf_nan="constants")


class Figure(_Part):
    """A measured number, with its 95 % confidence interval where it has one.

    `unit` is short (`tokens/s`, `bytes`, `nats/token`, `%`); `note` states the conditions.
    """

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    note: str = ""


class Verdict(_Part):
    """What the guard says of a stage.

    `good`; `dip`: outside its bound, but the recipe lets this stage dip; `outside`; or
    `unjudged`: there was no data to judge by, and neither NaN nor a broken promise was found.
    """

    status: Literal["good", "dip", "outside", "unjudged"] = "unjudged"
    reasons: list[str] = []


class StageReport(_Part):
    """One row: the original, or what a step made.

    `figures` by name: perplexity, kl, agreement, accuracy, macro_f1, size (bytes on disk),
    parameters, tokens_per_second, latency_p50, latency_p95, peak_memory. `curves` are lists
    of points by name (`loss/train`, `loss/dev`, `block influence`). `simulated` says that the
    speed in PyTorch is not the speed of an engine that computes on the codes. Data that a step
    made has no parent, and two figures: `rows`, and `kept`, the share of what was written.
    """

    id: str
    kind: str
    key: str
    parent: str | None = None
    path: str | None = None
    settings: dict[str, Any] = {}
    seconds: float | None = None
    peak_memory: int | None = None
    cached: bool = False
    simulated: bool = False
    figures: dict[str, Figure] = {}
    notes: dict[str, Any] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    warnings: list[str] = []
    verdict: Verdict = Verdict()


class Sample(_Part):
    """A prompt and what each stage (by id) wrote."""

    prompt: str
    texts: dict[str, str]


class Report(_Part):
    """Everything that a run measured. `stages[0]` is the original."""

    name: str
    task: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    stages: list[StageReport]
    samples: list[Sample] = []
    warnings: list[str] = []
    finished: bool = False

    @property
    def pressed(self) -> StageReport | None:
        """The last model that a step made; a later stage without a parent is data."""
        made = (stage for stage in reversed(self.stages[1:]) if stage.parent is not None)
        return next(made, None)
