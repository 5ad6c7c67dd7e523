"""What holds for every step that makes data."""

from __future__ import annotations

from pathlib import Path

import pytest

import data_steps
from attar.core import registry
from attar.core.step import DataStep

KINDS = data_steps.kinds()


def test_every_kind_is_tried():
    assert set(data_steps.SMALL) == set(KINDS)
    assert [kind for kind in registry.kinds() if kind.startswith("data/")] == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_they_ask_nothing_of_weights(kind: str):
    cls = registry.find(kind)
    assert not cls.needs | cls.forbids | cls.removes | cls.adds | cls.promises
    assert "scope" not in cls.model_fields
    assert cls.apply is DataStep.apply  # `make` alone is theirs


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_rows_and_another_seed_others(kind: str, tmp_path: Path):
    first, second = (data_steps.made(kind, tmp_path / name).examples for name in "ab")
    assert first == second
    assert first
    if kind != "data/label":  # which draws nothing
        assert data_steps.made(kind, tmp_path / "c", seed=1).examples != first


@pytest.mark.parametrize("kind", KINDS)
def test_killed_it_goes_on_to_the_same_rows(kind: str, tmp_path: Path):
    """What a kill leaves: whole parts, and the beginning of the next one."""
    step = registry.find(kind).model_validate(data_steps.settings(kind, tmp_path / "given"))
    assert isinstance(step, DataStep)
    step = step.model_copy(update={"batch": 4})
    whole = step.make(data_steps.context(tmp_path / "whole")).examples
    (parts,) = (tmp_path / "whole").glob("*.jsonl")
    lines = parts.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    scratch = tmp_path / "cut"
    ctx = data_steps.context(scratch)
    (scratch / parts.name).write_bytes(lines[0] + lines[1][:5])
    assert step.make(ctx).examples == whole
    assert (scratch / parts.name).read_bytes() == parts.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_tells_the_share_kept(kind: str, tmp_path: Path):
    step = registry.find(kind).model_validate(data_steps.settings(kind, tmp_path / "given"))
    ctx = data_steps.context(tmp_path / "scratch")
    assert isinstance(step, DataStep)
    step.make(ctx)
    assert 0 < ctx.notes["kept"] <= 1
