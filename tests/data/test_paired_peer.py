"""Where two tokenizers meet, against TRL's GOLD trainer, where it is installed."""

from __future__ import annotations

from typing import Any

import pytest

from attar.data.aligned import align
from data.test_paired import TEXT, byte_level, spelling

gold: Any = pytest.importorskip("trl.experimental.gold.gold_trainer")


def test_stretches_are_gold_s_groups() -> None:
    text = TEXT.encode("ascii", "ignore").decode()  # a byte is a character
    own, theirs = spelling(byte_level(400)), spelling(byte_level(280), "teacher")
    [mine], [yours] = own.place([text]), theirs.place([text])
    found = align(text, (own, mine), (theirs, yours))
    offsets = [list(zip(p.starts.tolist(), p.ends.tolist(), strict=True)) for p in (mine, yours)]
    groups = gold.ULDLoss._align_by_byte_offsets(*offsets)
    assert found.own_ends.tolist() == [group[-1] + 1 for group in groups[0]]
    assert found.their_ends.tolist() == [group[-1] + 1 for group in groups[1]]
