"""The device reaches all that computes: steps, their teachers, judging and timing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attar.core.context import Silent
from attar.core.recipe import Recipe
from attar.core.report import Figure
from attar.engine import make as making
from attar.engine import measuring, plan
from attar.engine.run import run
from attar.engine.store import Store
from attar.measure import machine

GPU = "cuda:7"


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where models are moved to; they stay where they are, for there is no such GPU."""
    to: list[str] = []
    own = making.load

    def load(*given: Any, **more: Any) -> Any:
        model = own(*given, **more)
        model.module.to = to.append
        return model

    monkeypatch.setattr(making, "load", load)
    monkeypatch.setattr(plan, "check_device", lambda _: None)
    monkeypatch.setattr(machine.torch.cuda, "get_device_name", lambda _: "a GPU")
    return to


def test_every_model_is_moved_and_timed_on_the_device(
    plain: dict[str, Any], tmp_path: Path, moved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []

    def probe(*given: Any) -> dict[str, Figure]:
        timed.append(given[-1])
        return {}

    monkeypatch.setattr(measuring, "probe", probe)
    plain["steps"] = [plain["steps"][0], plain["steps"][2]]
    plain["guard"] = {"enabled": False}
    plain["measures"]["speed"] = True
    done = run(plain, home=tmp_path, device=GPU)
    assert done.report.environment["device"] == GPU
    assert timed == [GPU] * 3
    # two parents of a step, three stages that are judged and, after timing, counted; a reference
    assert moved == [GPU] * len(moved)
    assert len(moved) >= 2 + 3 + 1


def test_a_teacher_is_moved_too(plain: dict[str, Any], tmp_path: Path, moved: list[str]) -> None:
    store = Store(tmp_path)
    store.prepare()
    made = plan.make_plan(Recipe.model_validate(plain), store, device=GPU)
    ctx = making.context(made, made.stages[2], store, Silent())
    assert ctx.device == GPU
    ctx.model("original")
    ctx.model(plain["model"])
    assert moved == [GPU, GPU]


def test_speed_is_measured_anew_on_another_device(
    plain: dict[str, Any], tmp_path: Path, moved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def probe(*given: Any) -> dict[str, Figure]:
        found.append(given[-1])
        return {"tokens_per_second": Figure(value=len(found))}

    monkeypatch.setattr(measuring, "probe", probe)
    plain["steps"], plain["guard"], plain["measures"]["speed"] = [], {}, True
    for device in ("cpu", GPU, "cpu", GPU):
        stage = run(plain, home=tmp_path, device=device).report.stages[0]
        assert stage.figures["tokens_per_second"].value == 1 + (device == GPU)
    assert found == ["cpu", GPU]
