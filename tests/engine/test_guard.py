"""What the guard checks whatever there is to judge by: promises, NaN, repetition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from attar.engine import measuring
from attar.engine.run import run
from attar.errors import GuardFailed
from attar.models import save

HALF = {"prune/magnitude": {"sparsity": 0.5}}
RTN = {"quantize/rtn": {"grid": "int8-channel"}}


@pytest.fixture
def no_data(plain: dict[str, Any]) -> dict[str, Any]:
    del plain["data"], plain["guard"]
    return {**plain, "steps": [RTN]}


def test_without_data_a_sound_stage_is_not_judged(no_data: dict[str, Any], tmp_path: Path) -> None:
    done = run(no_data, home=tmp_path)
    assert [stage.verdict.status for stage in done.report.stages] == ["unjudged"] * 2


@pytest.mark.parametrize("may_dip", [[], ["again"]])
def test_without_data_a_step_that_changes_nothing_is_refused(
    no_data: dict[str, Any], tmp_path: Path, may_dip: list[str]
) -> None:
    again = {"prune/magnitude": {"sparsity": 0.5, "id": "again"}}
    no_data |= {"steps": [HALF, again], "guard": {"may_dip": may_dip}}
    with pytest.raises(GuardFailed, match=r"'again' is outside its bound.*byte for byte"):
        run(no_data, home=tmp_path)


def test_without_data_nan_is_refused(no_data: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_models.tiny("llama")
    with torch.no_grad():
        model.base.norm.weight.fill_(3e38)  # finite, but not what is computed with it
    save(model, tmp_path / "model")
    no_data["model"] = str(tmp_path / "model")
    with pytest.raises(GuardFailed, match="NaN"):
        run(no_data, home=tmp_path / "home")
    no_data["guard"] = {"enabled": False}
    run(no_data, home=tmp_path / "home")


def test_repetition_is_judged_up_to_the_reference_too(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain["steps"] = [plain["steps"][0], {"quantize/rtn": {"grid": "int8-channel", "id": "base"}}]
    plain["guard"] = {"reference": "base", "perplexity": 100.0}
    monkeypatch.setattr(measuring, "looping_share", lambda *_: 1.0)
    run(plain, home=tmp_path / "all")  # an original that repeats itself is no one's fault

    def pruned(model: Any, *_: Any) -> float:
        return float(len(model.blocks) < 3)

    monkeypatch.setattr(measuring, "looping_share", pruned)
    with pytest.raises(GuardFailed, match=r"'shallower' .* the original in 0%"):
        run(plain, home=tmp_path / "pruned")


def test_repetition_is_measured_again_on_other_prompts(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counting(_: Any, batches: Any, *__: Any) -> float:
        seen.append(sum(batch.size for batch in batches))
        return 0.0

    monkeypatch.setattr(measuring, "looping_share", counting)
    plain |= {"steps": [RTN], "guard": {"perplexity": 100.0}}
    run(plain, home=tmp_path)
    first, seen[:] = list(seen), []
    run(plain, home=tmp_path)
    assert not seen
    plain["measures"]["sequences"] = 8
    run(plain, home=tmp_path)
    assert [2 * count for count in first] == seen
