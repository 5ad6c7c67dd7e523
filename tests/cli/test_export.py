from __future__ import annotations

import json
from pathlib import Path

import pytest

from attar.export.target import TARGETS
from attar.models import save
from cli.calling import Attar
from export.decoders import decoder
from tiny_models import press

pytest.importorskip("compressed_tensors")


def test_targets_are_listed(attar: Attar) -> None:
    done = attar("export", "anything")
    assert done.code == 2
    assert TARGETS.names() == [entry.kind for entry in TARGETS.entries()]
    for entry in TARGETS.entries():
        assert f"{entry.kind}: {entry.summary}" in done.err
        assert TARGETS.find(entry.kind).engine


def test_an_export_its_card_and_its_speed(attar: Attar, tmp_path: Path) -> None:
    save(press(decoder(), "int4-g32", "int8-g32"), tmp_path / "pressed")
    home = ("--home", str(tmp_path / "home"))
    done = attar("export", str(tmp_path / "pressed"), "hf", "--no-speed", *home)
    assert done.code == 0, done.err
    folder = tmp_path / "home" / "exports" / "pressed" / "hf"
    assert str(folder) in done.out
    record = json.loads((folder / "attar-export.json").read_text())
    assert record["verified"]["outputs"]["largest_difference"] < 1e-3
    card = attar("card", str(tmp_path / "pressed"), *home)
    assert card.code == 0
    assert "## hf" in card.out
    timed = attar("bench", str(tmp_path / "pressed"), "--threads", "1", *home)
    assert timed.code == 0, timed.err
    assert "fastest here: hf" in timed.out
    record = json.loads((folder / "attar-export.json").read_text())
    assert record["speed"]["tokens_per_second"]["value"] > 0
    assert record["speed"]["peak_memory"]["value"] > 1e6


def test_what_is_refused_says_what_is_held(attar: Attar, tmp_path: Path) -> None:
    save(press(decoder(), "nf4-g64"), tmp_path / "pressed")
    done = attar("export", str(tmp_path / "pressed"), "hf", "--out", str(tmp_path / "out"))
    assert done.code == 2
    assert "nf4-g64" in done.err
    assert "fp8-e4m3" in done.err
    assert not (tmp_path / "out").exists()
