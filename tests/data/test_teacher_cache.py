"""Rows of a teacher's answers on disk: found again, whole or not there, and bounded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from attar.data.teacher_cache import TeacherCache, digest


def row(number: int, positions: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    words = torch.randint(0, 256, (positions, 6), generator=generator).to(torch.uint8)
    return {"words": words, "numbers": torch.full((positions, 2), number, dtype=torch.int16)}


def name(number: int) -> bytes:
    return digest(torch.tensor([number, number + 1]))


def same(found: dict[str, Tensor] | None, wanted: dict[str, Tensor]) -> bool:
    return found is not None and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_rows_are_found_again_by_their_tokens(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path / "one", shard=200)
    for number in range(20):
        cache.put(name(number), row(number, 3 + number % 4))
    cache.flush()
    again = TeacherCache(tmp_path / "one")
    assert len(again) == 20
    assert len(list((tmp_path / "one").iterdir())) > 3
    for number in reversed(range(20)):
        assert same(cache.get(name(number)), row(number, 3 + number % 4))
        assert same(again.get(name(number)), row(number, 3 + number % 4))
    assert again.get(name(20)) is None


def test_a_crash_loses_what_was_not_written_yet(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path / "one", shard=200)  # four rows
    for number in range(10):
        cache.put(name(number), row(number))
    again = TeacherCache(tmp_path / "one")
    assert [again.get(name(number)) is not None for number in range(10)] == [True] * 8 + [False] * 2


def test_a_failing_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    said: list[str] = []
    cache = TeacherCache(tmp_path / "one", warn=said.append, shard=200)
    monkeypatch.setattr("attar.data.teacher_cache.save_file", full)
    for number in range(10):
        cache.put(name(number), row(number))
    assert list((tmp_path / "one").iterdir()) == []
    assert len(said) == 1
    assert "disk is full" in said[0]


def test_a_damaged_shard_is_asked_for_again(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path / "one", shard=100)
    for number in range(4):
        cache.put(name(number), row(number))
    first, *_ = sorted((tmp_path / "one").iterdir())
    data = bytearray(first.read_bytes())
    data[-3] ^= 1  # of a row, not of the header
    first.write_bytes(data)
    said: list[str] = []
    again = TeacherCache(tmp_path / "one", warn=said.append)
    found = [again.get(name(number)) is not None for number in range(4)]
    assert sorted(found) == [False, False, True, True]
    assert len(said) == 1
    cut, *_ = sorted((tmp_path / "one").iterdir())
    cut.write_bytes(cut.read_bytes()[:20])
    assert len(TeacherCache(tmp_path / "one")) == 0


def test_all_folders_together_are_bounded(tmp_path: Path) -> None:
    one = TeacherCache(tmp_path / "one", shard=100)
    for number in range(8):
        one.put(name(number), row(number))
    size = sum(path.stat().st_size for path in (tmp_path / "one").iterdir())
    said: list[str] = []
    other = TeacherCache(tmp_path / "other", limit=size + 150, warn=said.append, shard=100)
    for number in range(8):
        other.put(name(number), row(number))
    other.flush()
    assert 0 < len(other) < 8
    assert len(said) == 1
    assert "keeps nothing more" in said[0]
    assert "`cache_limit`" in said[0]
    # those of another teacher lie in a folder of its own
    third = TeacherCache(
        tmp_path / "another" / "one", limit=size + 150, warn=said.append, shard=100, among=tmp_path
    )
    for number in range(8):
        third.put(name(number), row(number))
    assert len(third) < len(other)
    assert len(said) == 2
